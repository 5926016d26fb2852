"""The credentials that backends ask for, encrypted at rest: a stolen database does not open the backends."""

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class CannotUnseal(ValueError):
    pass


def seal(text: str) -> bytes:
    return _cipher(settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS).encrypt(text.encode())


def unseal(sealed: bytes | memoryview) -> str:
    """The clear text. PostgreSQL hands out a memoryview, SQLite bytes."""
    try:
        return _cipher(settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS).decrypt(bytes(sealed)).decode()
    except InvalidToken:
        raise CannotUnseal(
            "The credential was sealed with another SECRET_KEY: add that one to SECRET_KEY_FALLBACKS, or enter "
            "the credential again."
        ) from None


@lru_cache(maxsize=4)
def _cipher(*secret_keys: str) -> MultiFernet:
    """The first key seals, all of them unseal."""
    return MultiFernet([Fernet(_derived(secret_key)) for secret_key in secret_keys])


def _derived(secret_key: str) -> bytes:
    # HKDF, because SECRET_KEY has other uses too: what is learnt from one must say nothing about another.
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"backend credential")
    return base64.urlsafe_b64encode(derivation.derive(secret_key.encode()))
