"""The clear text of management tokens: made, checked for form and digested here, and nowhere else.

A token is no API key and a key is no token: they differ in form, in their table, and in what their digest is of.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from tenants.keys import ALPHABET, CHECKSUM_LENGTH, PREFIX_LENGTH, SECRET_LENGTH, checksum, digest
from tenants.models import ManagementToken, ManagementTokenLastUsed, Role, Tenant, User
from tenants.models.management_tokens import SCOPES

# What secret scanners may look for; docs/management-api.md prints it.
PATTERN = r"\bogm_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}\b"
_FORM = re.compile(rb"ogm_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")
# How often a use is written down.
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at the one moment when its clear text is known."""

    row: ManagementToken
    clear_text: str = field(repr=False)


def create_token(user: User, name: str, scopes: Iterable[str], **fields: object) -> NewToken:
    """A new token. `fields` are columns of ManagementToken. Raises ValidationError."""
    return issue(ManagementToken(user=user, name=name, scopes=list(scopes), **fields))


def issue(row: ManagementToken) -> NewToken:
    """Gives a row that was not saved yet its secret, and saves it. Raises ValidationError."""
    row.scopes = [scope for scope in SCOPES if scope in row.scopes] or row.scopes
    row.prefix, secret = _random(PREFIX_LENGTH), _random(SECRET_LENGTH)
    body = f"ogm_{row.prefix}_{secret}"
    clear_text = body + checksum(body.encode()).decode()
    row.digest = _digest(clear_text.encode(), settings.KEY_PEPPER)
    row.full_clean()
    row.save(force_insert=True)
    return NewToken(row, clear_text)


def has_form(credential: bytes) -> bool:
    """Whether it can be a token of ours: form and checksum, without a look-up."""
    return (
        _FORM.fullmatch(credential) is not None
        and checksum(credential[:-CHECKSUM_LENGTH]) == credential[-CHECKSUM_LENGTH:]
    )


def find(credential: bytes) -> ManagementToken | None:
    """The usable token with a secret, and its user as they are now."""
    if not has_form(credential):
        return None
    digests = [_digest(credential, pepper) for pepper in (settings.KEY_PEPPER, *settings.KEY_PEPPER_FALLBACKS)]
    usable = ManagementToken.objects.usable().select_related("user", "tenant")
    return usable.filter(digest__in=digests).first()


def note_use(token: ManagementToken, now: datetime | None = None) -> None:
    now = now or timezone.now()
    recent = ManagementTokenLastUsed.objects.filter(token=token)
    if not recent.filter(at__gt=now - USE_NOTED_EVERY).exists() and not recent.update(at=now):
        # Of two first uses at once, one is enough.
        ManagementTokenLastUsed.objects.bulk_create(
            [ManagementTokenLastUsed(token=token, at=now)], ignore_conflicts=True
        )


def scopes_for(user: User) -> dict[str, str]:
    """The scopes that can be of use to somebody. What they may do is asked again at each call, whatever they chose."""
    if user.is_superuser or user.is_staff:
        return SCOPES
    names = ["read"]
    if user.tenants_for_keys().exists():
        names.append("keys:write")
    if user.tenants_owned().exists():
        names += ["people:write", "rules:write"]
    return {name: SCOPES[name] for name in names}


def tenants_for(user: User) -> QuerySet[Tenant]:
    """What a token of somebody may be restricted to."""
    return Tenant.objects.current() if user.is_superuser else user.tenants_with_role(*Role.values)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _digest(credential: bytes, pepper: bytes) -> bytes:
    # Not the digest of an API key: even a row that was copied between the tables would open nothing.
    return digest(b"management token " + credential, pepper)
