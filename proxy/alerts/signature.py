"""How the receiver of a webhook knows that it is from us, and new. Pure. docs/limits.md has the other side of it."""

import hmac
import secrets

HEADER = "x-gateway-signature"


def new_secret() -> str:
    return f"whs_{secrets.token_urlsafe(32)}"


def signature(secret: str, body: bytes, at: int) -> str:
    """The value of the header: `t=` epoch seconds, `v1=` the HMAC-SHA256, in hex, of those seconds, a dot, the body."""
    said = hmac.digest(secret.encode(), b"%d." % at + body, "sha256").hex()
    return f"t={at},v1={said}"
