"""Routes that a superuser adds for what a newer Ollama can: which there may be, and how their calls are read. Pure.

A path is passed on exactly as it stands in the table, never as a client wrote it, and without its query.
"""

import re
from collections.abc import Iterable, Mapping

from proxy import body, dialects
from proxy.body import Schema
from proxy.dialects import Endpoint, ollama
from proxy.dialects.base import Governed, Pin, Request
from proxy.metering import passed
from proxy.routes import Kind, Right, Route, find

MAX_PATH = 64  # as usage records have room for
METHODS = ("GET", "POST", "DELETE")
RIGHTS = {"infer": Right.INFER, "list": Right.LIST, "manage": Right.MANAGE}

_PATH = re.compile(r"/(api|v1)(/[A-Za-z0-9_-][A-Za-z0-9._~-]*){1,8}")
# What changes models or speaks for the operator, wherever it stands in a path: it may come under a newer name.
_MANAGES = frozenset((
    "pull", "push", "create", "copy", "delete", "remove", "blobs", "upload", "import", "export", "load", "unload",
    "signin", "signout", "me", "account", "keys", "admin", "config", "settings", "debug", "pprof", "experimental",
    "web_search", "web_fetch",
))  # fmt: skip
# Fields that name a model, in any case: a body with one of them must go by the rules for models.
_NAMES_A_MODEL = frozenset(("model", "name"))
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

_SCHEMA = Schema(
    {
        "model": body.text,
        "stream": body.boolean,
        "keep_alive": ollama.keep_alive,
        "options": body.nested(ollama.OPTIONS),
        **dict.fromkeys(_CAPS, body.integer),
    }
)
NOTHING_KNOWN = Schema({})


def refuse(path: str, method: str, right: str) -> None:
    """Raises ValueError saying why a route cannot be."""
    if not _PATH.fullmatch(path) or len(path) > MAX_PATH:
        raise ValueError(
            f"Write an exact path below /api/ or /v1/ of at most {MAX_PATH} characters, e.g. /api/rerank: no query, "
            "no pattern, no slash at its end."
        )
    if find(path.encode())[0]:
        raise ValueError("This path is the gateway's own. What it answers there cannot be replaced.")
    if right != "manage" and (method == "DELETE" or not _MANAGES.isdisjoint(path.lower().split("/"))):
        raise ValueError("This looks like the management of models. Only keys that may manage models can have it.")


def route(path: str, method: str, right: str, *, names_model: bool) -> Route:
    return Route(
        method=method,
        path=path,
        kind=Kind.PASSED,
        right=RIGHTS[right],
        dialect=dialects.of_path(path.encode()),
        endpoint=NATIVE if names_model and path.startswith("/api/") else OPENAI if names_model else None,
        upstream=f"{method} {path}".encode(),
    )


def table(routes: Iterable[Route]) -> Mapping[bytes, Mapping[str, Route]]:
    found: dict[bytes, dict[str, Route]] = {}
    for made in routes:
        found.setdefault(made.path.encode(), {})[made.method] = made
    return found


def names_a_model(request: Request) -> bool:
    return any(name.casefold() in _NAMES_A_MODEL for name in request)


def _govern_openai(request: Request, pin: Pin) -> Governed:
    """What is not known cannot be set; what is asked for is bounded."""
    changed = [name for name in ("keep_alive", "options") if request.pop(name, None) is not None]
    asked = next((request[name] for name in _CAPS if request.get(name)), None)
    cap = pin.capped(asked)
    for name in _CAPS:
        if request.get(name) and request[name] != cap:
            request[name] = cap
            changed.append(f"{name}={cap}")
    return Governed(cap, changed)


def _streams(request: Request) -> bool:
    return request.get("stream") is True


NATIVE = Endpoint(schema=_SCHEMA, govern=ollama.govern_generation, meter=passed.meter, wants_stream=ollama.wants_stream)
OPENAI = Endpoint(schema=_SCHEMA, govern=_govern_openai, meter=passed.meter, wants_stream=_streams)
