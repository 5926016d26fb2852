"""Anthropic-compatible errors (ollama-api §4.1)."""

from collections.abc import Mapping

from proxy.dialects.base import Endpoint, go_json

ENDPOINTS: Mapping[str, Endpoint] = {}

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class Anthropic:
    name = "anthropic"

    def error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return go_json({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.error(status, code, message, request_id) + b"\n\n"
