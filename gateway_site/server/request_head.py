"""What a request head may hold, beyond what llhttp checks. No I/O."""

from __future__ import annotations

import re

# Names sent by ordinary clients, as they spell them, to their lower-case form: one look-up instead of `lower()`
# and five comparisons. Host, Connection, Upgrade, Expect and Transfer-Encoding are absent since they mean
# something to the server.
PLAIN_NAMES: dict[bytes, bytes] = {
    spelling: name.lower()
    for name in (
        *(b"Accept", b"Accept-Charset", b"Accept-Encoding", b"Accept-Language", b"Authorization", b"Cache-Control"),
        *(b"Content-Encoding", b"Content-Length", b"Content-Type", b"Cookie", b"DNT", b"If-Modified-Since"),
        *(b"If-None-Match", b"Origin", b"Pragma", b"Priority", b"Range", b"Referer", b"Sec-Fetch-Dest"),
        *(b"Sec-Fetch-Mode", b"Sec-Fetch-Site", b"Sec-Fetch-User", b"TE", b"Traceparent", b"Tracestate"),
        *(b"User-Agent", b"Via", b"X-Api-Key", b"X-CSRFToken", b"X-Forwarded-For", b"X-Forwarded-Host"),
        *(b"X-Forwarded-Proto", b"X-Real-IP", b"X-Request-ID", b"X-Requested-With", b"X-Stainless-Arch"),
        *(b"X-Stainless-Async", b"X-Stainless-Lang", b"X-Stainless-OS", b"X-Stainless-Package-Version"),
        *(b"X-Stainless-Retry-Count", b"X-Stainless-Runtime", b"X-Stainless-Runtime-Version", b"X-Stainless-Timeout"),
        *(b"X-Stainless-Read-Timeout", b"X-Stainless-Helper-Method", b"Anthropic-Beta", b"Anthropic-Version"),
        *(b"OpenAI-Organization", b"OpenAI-Project", b"OpenAI-Beta", b"Idempotency-Key"),
    )
    for spelling in (name, name.lower())
}

# Some frameworks and servers route by these. Names with `_` go too: CGI and WSGI cannot tell them from `-`.
DROPPED_NAMES = frozenset({b"daphne-root-path", b"x-original-url", b"x-rewrite-url", b"script-name"})

# RFC 3986 reg-name or IPv4 without percent-encoding, or a bracketed IPv6 address; then an optional port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")

# A request line that is fine but for its method: 405 says more than 400.
_ODD_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [!-~]+ HTTP/1\.[01]\r\n")


def valid_host(value: bytes) -> bool:
    return _HOST.match(value) is not None


def unknown_method(data: bytes) -> bool:
    return _ODD_METHOD.match(data) is not None


def head_size(headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of the header lines; the request line has a cap of its own."""
    return sum(len(name) + len(value) + 4 for name, value in headers)
