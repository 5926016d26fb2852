"""/_fake/: steering the server and asking what it saw."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from proxy.fake_ollama.call import JSON, Call
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.faults import Fault
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.names import InvalidName, parse_name

if TYPE_CHECKING:
    from proxy.fake_ollama.server import FakeOllama

Query = dict[str, str]


async def answer(call: Call) -> None:
    handler = ROUTES.get((call.request.method, call.path))
    if handler is None:
        raise ApiError(404, f"no such control: {call.request.method} {call.path}")
    query = {name: values[-1] for name, values in parse_qs(call.request.target.partition("?")[2]).items()}
    try:
        body = orjson.loads(call.request.body or b"null")
        value = await handler(call.server, body, query)
    except (ValueError, TypeError, KeyError, InvalidName) as error:
        raise ApiError(400, f"{type(error).__name__}: {error}") from error
    except TimeoutError as error:
        raise ApiError(504, "it did not happen in time") from error
    await call.answer.whole(200, JSON, orjson.dumps(value) + b"\n")


async def faults(server: "FakeOllama", body: Any, query: Query) -> Any:
    for item in body if isinstance(body, list) else [body]:
        server_wide = {name: item.pop(name) for name in server.switches & item.keys()}
        await server.switch(**server_wide)
        if item:
            server.book.add(Fault.from_json(item))
    return {"faults": len(server.book.rules)}


async def clear_faults(server: "FakeOllama", body: Any, query: Query) -> Any:
    server.clear_faults()
    return {"faults": 0}


async def calls(server: "FakeOllama", body: Any, query: Query) -> Any:
    if "wait" in query:
        await server.saw(query["wait"], int(query.get("count", 1)), timeout=float(query.get("timeout", 5)))
    since, path = int(query.get("since", 0)), query.get("path")
    return [seen.as_json() for seen in server.log.calls if seen.index >= since and (path is None or seen.path == path)]


async def counts(server: "FakeOllama", body: Any, query: Query) -> Any:
    if "wait" in query:
        await server.saw(query["wait"], int(query.get("count", 1)), timeout=float(query.get("timeout", 5)))
    return server.counts()


async def reset(server: "FakeOllama", body: Any, query: Query) -> Any:
    server.reset()
    return {}


async def release(server: "FakeOllama", body: Any, query: Query) -> Any:
    server.release()
    return {}


async def models(server: "FakeOllama", body: Any, query: Query) -> Any:
    for item in body.get("add", ()):
        server.add_model(item if isinstance(item, str) else Model(**item))
    for name in body.get("remove", ()):
        server.remove_model(name)
    for name, digest in body.get("digest", {}).items():
        server.change_digest(name, digest)
    server.pullable.update(parse_name(name).key for name in body.get("pullable", ()))
    return {"models": [model.name for model in server.library.newest_first()]}


ROUTES: dict[tuple[str, str], Callable[["FakeOllama", Any, Query], Awaitable[Any]]] = {
    ("POST", "/_fake/faults"): faults,
    ("DELETE", "/_fake/faults"): clear_faults,
    ("GET", "/_fake/calls"): calls,
    ("GET", "/_fake/counts"): counts,
    ("POST", "/_fake/reset"): reset,
    ("POST", "/_fake/release"): release,
    ("POST", "/_fake/models"): models,
}
