"""Which web pages may call the API from a browser (threat P11, ollama-api §4.5). Pure.

Credentials mode is never granted: the API takes keys in headers and ignores cookies, so a page needs none.
"""

import re
from collections.abc import Iterable, Sequence

Headers = list[tuple[bytes, bytes]]

MAX_AGE_SECONDS = 12 * 3600
# Worked-out answers kept: origins are what strangers make up.
REMEMBERED = 1000

ALLOWED_HEADERS = (
    *("authorization", "content-type", "user-agent", "accept", "x-requested-with", "x-request-id", "cache-control"),
    "x-gateway-backend",
    *("openai-beta", "openai-organization", "openai-project", "x-api-key"),
    *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
)
_STAINLESS = re.compile(r"x-stainless-[a-z0-9-]{1,40}\Z")
# A prefix cannot be exposed, so each name is said.
EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "x-should-retry", "x-cache", "age"),
    *("x-gateway-backend", "x-gateway-queue-ms", "x-gateway-adjusted", "x-gateway-error", "x-gateway-estimated"),
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens", "cost", "concurrent")
    ),
)
_EXPOSED = ", ".join(EXPOSED_HEADERS).encode()

# scheme://host with an optional port; a star stands for any part of it.
_PATTERN = re.compile(r"\*|[a-z*][a-z0-9+.*-]*://[a-z0-9.*_\[\]:-]+/?\Z", re.IGNORECASE)


def check_patterns(patterns: Iterable[str]) -> None:
    """Raises ValueError for the first that can match no origin."""
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{pattern!r} is no web origin. Write e.g. https://app.example.com or http://localhost:*")


class Origins:
    def __init__(self, patterns: Iterable[str]) -> None:
        """`patterns`: origins in which a star stands for any characters but a slash; a star alone allows all."""
        patterns = [pattern.lower().rstrip("/") for pattern in patterns]
        self._all = "*" in patterns
        texts = [re.escape(pattern).replace(r"\*", "[^/]*") for pattern in patterns if pattern != "*"]
        self._listed = re.compile("|".join(texts) or r"(?!)")
        self._verdicts: dict[bytes, bool] = {}

    def allow(self, origin: bytes, own: bytes) -> bool:
        """Whether pages of an origin may call; those of `own`, the address that was called, always may."""
        if origin.lower() == own.lower():
            return True
        verdict = self._verdicts.get(origin)
        if verdict is None:
            if len(self._verdicts) >= REMEMBERED:
                self._verdicts.clear()
            text = origin.decode("latin-1").lower()
            verdict = self._all or self._listed.fullmatch(text) is not None
            self._verdicts[origin] = verdict
        return verdict


def granted(origin: bytes) -> Headers:
    """What lets a page read an answer, whether it is good or an error."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


WITHHELD: Headers = [(b"vary", b"Origin")]


def preflight(methods: Iterable[str], asked_headers: bytes, auth_header: bytes) -> Headers:
    """Beside `granted`, what a page may send: to a path with these methods, asking for these headers."""
    names = [*ALLOWED_HEADERS, *_stainless(asked_headers)]
    if auth_header.decode() not in names:
        names.append(auth_header.decode())
    return [
        (b"access-control-allow-methods", ", ".join([*methods, "OPTIONS"]).encode()),
        (b"access-control-allow-headers", ", ".join(names).encode()),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
    ]


def _stainless(asked_headers: bytes) -> Sequence[str]:
    """Those of the OpenAI and Anthropic libraries' own headers that are asked for; their list grows."""
    asked = [name.strip().lower() for name in asked_headers.decode("latin-1").split(",", 64)[:64]]
    return [name for name in dict.fromkeys(asked) if _STAINLESS.match(name)]
