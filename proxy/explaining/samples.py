"""The shortest call of each endpoint: what is judged where only its model is known."""

from typing import Any

import orjson

from proxy import body
from proxy.dialects.base import Request
from proxy.forms import Form
from proxy.routes import Route

_MESSAGES = [{"role": "user", "content": "Hello"}]
_BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": _MESSAGES},
    "/api/generate": {"prompt": "Hello"},
    "/api/embed": {"input": "Hello"},
    "/api/embeddings": {"prompt": "Hello"},
    "/api/show": {},
    "/v1/chat/completions": {"messages": _MESSAGES},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": 1024},
    "/v1/messages/count_tokens": {"messages": _MESSAGES},
}


def bytes_of(route: Route, model: str) -> bytes:
    """The body, as a client would send it."""
    return orjson.dumps({"model": model, **_BODIES[route.path]})


def request_of(route: Route, model: str) -> tuple[Request, int]:
    """(request, what its prompt weighs), read as that of a call is read. Raises BadRequest."""
    assert route.endpoint is not None
    if route.endpoint.read_form is not None:
        request = route.endpoint.read_form(Form({"model": model} if model else {}, b"\0" * 1000))
        return request, route.endpoint.weigh(request, 0)
    raw = bytes_of(route, model)
    request = body.read(raw, route.endpoint.schema)
    return request, route.endpoint.weigh(request, len(raw))
