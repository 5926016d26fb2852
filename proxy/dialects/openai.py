"""OpenAI-compatible errors (ollama-api §4.1)."""

from collections.abc import Mapping

from proxy.dialects.base import Endpoint, go_json

ENDPOINTS: Mapping[str, Endpoint] = {}

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


class OpenAI:
    name = "openai"

    def error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        kind = _TYPES.get(status, "api_error")
        return go_json({"error": {"message": message, "type": kind, "param": None, "code": code}})

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        return b"data: " + self.error(status, code, message, request_id) + b"\n\n"
