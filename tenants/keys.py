"""The clear text of API keys: made, checked for form and digested here, and nowhere else."""

import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from tenants.models import ApiKey, Tenant, User

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BRAND = "ogw"
PREFIX_LENGTH = 8
SECRET_LENGTH = 43  # 62 ** 43 > 2 ** 256
CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
# What secret scanners may look for; docs/security.md prints it.
PATTERN = r"\bogw_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}\b"

# Each digit of base62 → its value.
_VALUES = bytes.maketrans(ALPHABET.encode(), bytes(range(len(ALPHABET))))
_LENGTH = len(BRAND) + 1 + PREFIX_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH


@dataclass(frozen=True)
class NewKey:
    """A key at the one moment when its clear text is known."""

    row: ApiKey
    clear_text: str = field(repr=False)


def checksum(body: bytes) -> bytes:
    """CRC-32 of all before it, in base62, most significant digit first."""
    number, digits = zlib.crc32(body), []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits)).encode()


def has_our_form(key: bytes) -> bool:
    """Whether it can be a key of ours: form and checksum. Costs about a microsecond and no look-up."""
    if len(key) != _LENGTH or not key.startswith(b"ogw_") or key[4 + PREFIX_LENGTH] != 0x5F:
        return False
    if not key[4:12].isalnum() or not key[13:].isalnum():
        return False
    a, b, c, d, e, f = key[-CHECKSUM_LENGTH:].translate(_VALUES)
    number = ((((a * 62 + b) * 62 + c) * 62 + d) * 62 + e) * 62 + f
    return number == zlib.crc32(key[:-CHECKSUM_LENGTH])


def without_padding(key: bytes) -> bytes:
    """The form in which keys of other proxies are digested: they may be sent with or without the "=" of base64."""
    return key.rstrip(b"=")


def digests(key: str) -> list[bytes]:
    """Of a key, ours or another proxy's, by each pepper of this installation: the first is that of new rows."""
    raw = key.encode()
    meant = raw if has_our_form(raw) else without_padding(raw)
    return [digest(meant, pepper) for pepper in (settings.KEY_PEPPER, *settings.KEY_PEPPER_FALLBACKS)]


def adopt(row: ApiKey, clear_text: str) -> None:
    """Gives a row a secret that exists already, in whatever form. The row is not saved."""
    raw = clear_text.encode()
    row.imported = not has_our_form(raw)
    row.digest = digests(clear_text)[0]
    row.prefix = make_clear_text()[0] if row.imported else clear_text[4 : 4 + PREFIX_LENGTH]


def digest(key: bytes, pepper: bytes) -> bytes:
    """HMAC-SHA256 of a whole key."""
    # 256 random bits need no salt and no slow hash: there is nothing to guess.
    # The pepper makes a stolen table useless for checking guessed or leaked keys.
    # On copies of the prepared states: hmac.digest() lets go of the GIL, which costs a busy process 20 µs a call.
    inner, outer = (state.copy() for state in _prepared(pepper))
    inner.update(key)
    outer.update(inner.digest())
    return outer.digest()


@lru_cache(maxsize=8)
def _prepared(pepper: bytes) -> tuple[Any, Any]:
    """SHA-256 after the inner and the outer pad of RFC 2104."""
    block = (hashlib.sha256(pepper).digest() if len(pepper) > 64 else pepper).ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))  # type: ignore[return-value]


def make_clear_text(prefix: str = "") -> tuple[str, str]:
    """(prefix, clear text) of a fresh key; a prefix that is given is of 8 letters and digits."""
    prefix = prefix or "".join(secrets.choice(ALPHABET) for _ in range(PREFIX_LENGTH))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    body = f"{BRAND}_{prefix}_{secret}"
    return prefix, body + checksum(body.encode()).decode()


def create_key(tenant: Tenant, name: str, *, user: User | None = None, **fields: object) -> NewKey:
    """A new key of a tenant. `fields` are columns of ApiKey. Raises ValidationError."""
    return issue(ApiKey(tenant=tenant, user=user, name=name, **fields))


def issue(row: ApiKey, prefix: str = "") -> NewKey:
    """Gives a row that was not saved yet its secret, and saves it. Raises ValidationError."""
    row.prefix, clear_text = make_clear_text(prefix)
    row.digest = digest(clear_text.encode(), settings.KEY_PEPPER)
    row.full_clean()
    row.save(force_insert=True)
    return NewKey(row, clear_text)


class RotatedMeanwhile(Exception):
    """By somebody else, or by a button that was pressed twice. Once more, and the secret that programs have would stop
    at once."""


def rotation_of(key: ApiKey) -> str:
    """What tells the last rotation of a key from the one before, for a form to hold."""
    return f"{key.previous_expires_at:%Y%m%d%H%M%S%f}" if key.previous_expires_at else "none"


def rotate_key(key: ApiKey, overlap: timedelta, now: datetime | None = None, *, after: str = "") -> NewKey:
    """A new secret under the same row; the old one works until the overlap ends.

    `after`: the rotation_of the key that a form was made for; raises RotatedMeanwhile if it is not the last any more.
    """
    _, fresh = make_clear_text()
    body = f"{BRAND}_{key.prefix}_{fresh[13:-CHECKSUM_LENGTH]}"
    clear_text = body + checksum(body.encode()).decode()
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=key.pk)
        if after and after != rotation_of(row):
            raise RotatedMeanwhile
        row.previous_digest, row.previous_expires_at = row.digest, (now or timezone.now()) + overlap
        row.digest = digest(clear_text.encode(), settings.KEY_PEPPER)
        row.save(update_fields=["digest", "previous_digest", "previous_expires_at"])
    return NewKey(row, clear_text)


def owner_of_secret(keys: QuerySet[ApiKey], secret: bytes) -> ApiKey | None:
    """Which of these keys a whole key is, or was before its last rotation; or else whose prefix it bears."""
    whole = secret if has_our_form(secret) else without_padding(secret)
    digests = [digest(whole, pepper) for pepper in (settings.KEY_PEPPER, *settings.KEY_PEPPER_FALLBACKS)]
    found = keys.filter(Q(digest__in=digests) | Q(previous_digest__in=digests)).first()
    if found is None and has_our_form(secret):
        found = keys.filter(prefix=secret[4 : 4 + PREFIX_LENGTH].decode()).first()
    return found


def derived_key(purpose: str) -> str:
    """A key that is the same whenever it is asked for on this installation: the demo's, which nobody may store."""
    number = int.from_bytes(hmac.digest(settings.KEY_PEPPER, purpose.encode(), "sha512"), "big")
    characters = []
    for _ in range(PREFIX_LENGTH + SECRET_LENGTH):
        number, digit = divmod(number, 62)
        characters.append(ALPHABET[digit])
    body = f"{BRAND}_{''.join(characters[:PREFIX_LENGTH])}_{''.join(characters[PREFIX_LENGTH:])}"
    return body + checksum(body.encode()).decode()
