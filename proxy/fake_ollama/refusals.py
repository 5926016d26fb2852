"""Errors in the shape of the route's family."""

from typing import Any

from proxy.fake_ollama import routing
from proxy.fake_ollama.anthropic import HEX
from proxy.fake_ollama.call import JSON, JSON_UTF8, Call
from proxy.fake_ollama.errors import ApiError, EmptyRequest
from proxy.fake_ollama.generation import random_id
from proxy.fake_ollama.gojson import encode

OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


async def refuse(call: Call, error: ApiError) -> None:
    await call.hold_first_byte()
    family = routing.family(call.path)
    text = "EOF" if isinstance(error, EmptyRequest) and family != routing.NATIVE else error.text
    if family == routing.NATIVE or error.native:
        kind = JSON_UTF8 if error.charset else JSON
        await call.answer.whole(error.status, kind, encode({"error": text, **error.extra}))
        return
    value: dict[str, Any]
    if family == routing.ANTHROPIC:
        detail = {"type": ANTHROPIC_TYPES.get(error.status, "api_error"), "message": text}
        value = {"type": "error", "error": detail, "request_id": "req_" + random_id(24, HEX)}
    else:
        kind = OPENAI_TYPES.get(error.status, "api_error")
        value = {"error": {"message": text, "type": kind, "param": None, "code": None}}
    await call.answer.whole(error.status, JSON, encode(value) + b"\n")
