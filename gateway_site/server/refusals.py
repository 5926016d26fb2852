"""Answers the server gives by itself, without the application hearing of the request."""

from __future__ import annotations

import json
from http import HTTPStatus

METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


class Refusal:
    """A ready answer; the connection is closed after it."""

    def __init__(self, status: int, code: str, message: str, *headers: str) -> None:
        self.status = status
        self.code = code
        self.response = _render(status, code, message, headers)


class Refused(Exception):
    """Raised inside a parser callback, where only an exception stops the parser."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


def _render(status: int, code: str, message: str, headers: tuple[str, ...]) -> bytes:
    body = json.dumps({"error": message}).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        f"x-gateway-error: {code}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# Made once: a refusal costs no formatting, and a flood of them little.
MALFORMED = Refusal(400, "malformed_request", "the request is not valid HTTP/1.1")
BAD_FRAMING = Refusal(400, "bad_framing", "the length of the request body is ambiguous")
BAD_VERSION = Refusal(400, "bad_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
BAD_HOST = Refusal(400, "bad_host", "exactly one well-formed Host header is needed")
BAD_TARGET = Refusal(400, "bad_target", "the request target must be a path")
UPGRADE = Refusal(400, "upgrade_refused", "this protocol upgrade is not offered")
PIPELINE = Refusal(400, "pipeline_too_deep", "too many requests were sent ahead")
METHOD = Refusal(405, "method_not_allowed", "this method is not allowed", "allow: " + ", ".join(METHODS.values()))
SLOW_HEADERS = Refusal(408, "slow_request", "the request headers took too long")
SLOW_BODY = Refusal(408, "slow_request", "the request body came too slowly")
TARGET_TOO_LONG = Refusal(414, "target_too_long", "the request target is too long")
EXPECTATION = Refusal(417, "expectation_failed", "only Expect: 100-continue is understood")
HEADERS_TOO_LARGE = Refusal(431, "headers_too_large", "the request headers are too large or too many")
FAILED = Refusal(500, "internal_error", "internal error")
CROWDED = Refusal(503, "too_many_connections", "too many connections", "retry-after: 1")
