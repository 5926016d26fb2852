"""Which headers pass, in both directions: allow-lists (threats P8-P10). Pure."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from functools import lru_cache

Headers = Sequence[tuple[bytes, bytes]]

# What a client may tell a backend. Everything that frames, authenticates or routes is ours.
_TO_BACKEND = frozenset((b"accept", b"user-agent", b"traceparent", b"tracestate"))
_TO_BACKEND_FAMILIES = (b"anthropic-", b"openai-")
# What nearly every client sends, and no backend gets from it.
_NEVER = frozenset((b"host", b"authorization", b"content-type", b"content-length", b"accept-encoding"))

_TO_CLIENT = frozenset((b"retry-after",))
_CONTENT_TYPES = ("application/json", "application/x-ndjson", "text/event-stream", "text/plain")

# Printable ASCII without the characters that end or split a value somewhere.
_VALUE = re.compile(rb"[\x20-\x7e]{0,512}\Z")
# No underscore: some servers take it for a dash.
_FAMILY_NAME = re.compile(rb"(?:anthropic|openai)-[a-z0-9-]{1,60}\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@\-]{1,128}\Z")

LOOP_MARKER = b"x-ollama-gateway-hops"
MAX_HOPS = 4

# On every answer of ours.
SAFETY: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def instance_mark(pepper: bytes) -> bytes:
    """By which a gateway knows itself among its backends: the same in all processes, and telling nothing (N11)."""
    return hmac.digest(pepper, b"instance", hashlib.sha256).hex()[:16].encode()


def towards_backend(headers: Headers) -> bytes:
    """The client's headers that a backend may see, as bytes of a request head."""
    lines = b""
    for name, value in headers:
        if name in _NEVER:
            continue
        if name in _TO_BACKEND or (name.startswith(_TO_BACKEND_FAMILIES) and _FAMILY_NAME.match(name)):
            if _VALUE.match(value):
                lines += b"%b: %b\r\n" % (name, value)
        elif name == b"connection" and value != b"keep-alive":
            # What is named in Connection was meant for us alone.
            named = {option.strip().lower() for _, options in headers if _ == name for option in options.split(b",")}
            return towards_backend([pair for pair in headers if pair[0] not in named and pair[0] != name])
    return lines


@lru_cache(maxsize=64)
def content_type_for_client(value: bytes) -> bytes | None:
    """The type of a backend's answer if we may pass it on, else None."""
    try:
        text = value.decode("ascii").strip().lower()
    except UnicodeDecodeError:
        return None
    kind = text.partition(";")[0].strip()
    return value.strip() if kind in _CONTENT_TYPES and _VALUE.match(value) else None


def towards_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The backend's headers that a client may see, besides the content type."""
    return [(name, value) for name, value in headers if name in _TO_CLIENT and _VALUE.match(value)]


def client_request_id(value: bytes) -> str:
    """The client's own id if it is fit to be stored and searched, else "" (it is replaced, not echoed)."""
    text = value.decode("latin-1")
    return text if _REQUEST_ID.match(text) else ""


def stored_text(value: str, limit: int) -> str:
    """Text of a client as a column can hold it on every database: no NUL, not too long."""
    return value.replace("\x00", "\\x00")[:limit]
