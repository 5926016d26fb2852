"""Rows P1–P3, P6: what each key may do with each route, and that nothing but the routes of the table leads anywhere."""

import asyncio
import json

import pytest
import pytest_asyncio
from django.utils import timezone

from proxy.routes import _WITH_PARAMETER, ROUTES
from tests.live.raw import RawClient, bearer
from tests.live.seen import new_calls, no_calls
from tests.proxy.odd_paths import MANAGEMENT, odd_spellings

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
DIGEST = "sha256:" + "0" * 64
MESSAGES = [{"role": "user", "content": "hi"}]

ROLES = ("nobody", "ordinary", "list_only", "infer_only", "manages", "cloud", "revoked", "foreign")
# What each of them gets, in that order. "foreign" is a key of another tenant that may use another model.
TABLE = """
    GET    /                           200 200 200 200 200 200 200 200
    HEAD   /                           200 200 200 200 200 200 200 200
    GET    /api/version                401 200 200 403 200 200 401 200
    HEAD   /api/version                401 200 200 403 200 200 401 200
    GET    /api/status                 401 200 200 403 200 200 401 200
    GET    /api/tags                   401 200 200 403 200 200 401 200
    HEAD   /api/tags                   401 200 200 403 200 200 401 200
    GET    /api/ps                     401 200 200 403 200 200 401 200
    GET    /v1/models                  401 200 200 403 200 200 401 200
    GET    /v1/models/{model}          401 200 200 403 200 200 401 404
    POST   /api/show                   401 200 200 403 200 200 401 404
    POST   /api/chat                   401 200 403 200 200 200 401 404
    POST   /api/generate               401 200 403 200 200 200 401 404
    POST   /api/embed                  401 200 403 200 200 200 401 404
    POST   /api/embeddings             401 200 403 200 200 200 401 404
    POST   /v1/chat/completions        401 200 403 200 200 200 401 404
    POST   /v1/completions             401 200 403 200 200 200 401 404
    POST   /v1/embeddings              401 200 403 200 200 200 401 404
    POST   /v1/responses               401 200 403 200 200 200 401 404
    POST   /v1/messages                401 200 403 200 200 200 401 404
    POST   /v1/messages/count_tokens   401 200 403 200 200 200 401 404
    POST   /v1/audio/transcriptions    401 200 403 200 200 200 401 404
    POST   /api/pull                   401 403 403 403 200 403 401 403
    POST   /api/push                   401 403 403 403 200 403 401 403
    POST   /api/create                 401 403 403 403 200 403 401 403
    POST   /api/copy                   401 403 403 403 200 403 401 403
    DELETE /api/delete                 401 403 403 403 200 403 401 403
    HEAD   /api/blobs/{digest}         401 403 403 403 404 403 401 403
    POST   /api/blobs/{digest}         401 403 403 403 400 403 401 403
"""
BODIES = {
    "/api/show": {"model": "llama3.2"},
    "/api/chat": {"model": "llama3.2", "messages": MESSAGES, "stream": False},
    "/api/generate": {"model": "llama3.2", "prompt": "hi", "stream": False},
    "/api/embed": {"model": "nomic-embed-text", "input": "hi"},
    "/api/embeddings": {"model": "nomic-embed-text", "prompt": "hi"},
    "/v1/chat/completions": {"model": "llama3.2", "messages": MESSAGES},
    "/v1/completions": {"model": "llama3.2", "prompt": "hi"},
    "/v1/embeddings": {"model": "nomic-embed-text", "input": "hi"},
    "/v1/responses": {"model": "llama3.2", "input": "hi"},
    "/v1/messages": {"model": "llama3.2", "max_tokens": 9, "messages": MESSAGES},
    "/v1/messages/count_tokens": {"model": "llama3.2", "messages": MESSAGES},
    "/api/pull": {"model": "llama3.2", "stream": False},
    "/api/push": {"model": "llama3.2", "stream": False},
    "/api/create": {"model": "made", "from": "llama3.2", "stream": False},
    "/api/copy": {"source": "llama3.2", "destination": "copied"},
    "/api/delete": {"model": "to-delete"},
}
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nllama3.2\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
)
# Answered by us; the others ask a backend.
OURS = {
    "/v1/messages/count_tokens",
    "/",
    "/api/version",
    "/api/status",
    "/api/tags",
    "/api/ps",
    "/v1/models",
    "/v1/models/{model}",
}
ROWS = [(*row.split()[:2], dict(zip(ROLES, map(int, row.split()[2:]), strict=True))) for row in TABLE.split("\n")[1:-1]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url, slots=8)
    rights = {
        "ordinary": {},
        "list_only": {"may_infer": False},
        "infer_only": {"may_list": False},
        "manages": {"may_manage": True},
        "cloud": {"may_use_cloud": True},
        "revoked": {"may_manage": True, "revoked_at": timezone.now()},
    }
    made.keys = {role: made.make_key(role, **fields)[1] for role, fields in rights.items()}
    made.keys["foreign"] = made.make_key("foreign", "other", models_allowed=["qwen3:8b"])[1]
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    shared_fake.add_model("to-delete")
    return shared_fake


def headers_of(gateway, role):
    return [bearer(gateway.keys[role])] if role != "nobody" else []


def body_of(route):
    if route == "/v1/audio/transcriptions":
        return b"multipart/form-data; boundary=x", FORM
    return b"application/json", json.dumps(BODIES[route]).encode() if route in BODIES else b""


def path_of(route):
    return route.replace("{model}", "llama3.2").replace("{digest}", DIGEST)


async def test_p1_the_table_has_every_route():
    routes = [route for methods in ROUTES.values() for route in methods.values()]
    known = {(route.method, route.path) for route in [*routes, *_WITH_PARAMETER]}
    assert known == {(method, path) for method, path, _ in ROWS}


@pytest.mark.parametrize("role", ROLES)
async def test_p2_what_a_role_may_do(gateway, fake, role):
    headers = headers_of(gateway, role)
    async with RawClient(gateway.port) as raw:
        for method, route, expected in ROWS:
            kind, body = body_of(route)
            with new_calls(fake) as seen:
                answer = await raw.ask(method, path_of(route), *headers, (b"Content-Type", kind), body=body)
            assert answer.status == expected[role], (method, route, answer)
            refused_by_us = answer.all("x-gateway-error") not in ([], ["backend_refused"])
            asks = route not in OURS and not refused_by_us
            assert [call.method for call in seen] == [method] * asks, (method, route, answer)
            assert all(call.target == path_of(route) for call in seen)
            assert "to-delete:latest" in [model.name for model in fake.library.newest_first()] or role == "manages"


@pytest.mark.parametrize("role", ROLES)
async def test_p6_another_method_leads_nowhere(gateway, fake, role):
    """It is refused before the key is read, so all get the same."""
    allowed = {}
    for method, route, _ in ROWS:
        allowed.setdefault(route, set()).add(method)
    headers = [*headers_of(gateway, role), (b"X-HTTP-Method-Override", b"DELETE"), (b"X-Method-Override", b"POST")]
    body = b'{"model":"llama3.2","_method":"DELETE"}'
    async with RawClient(gateway.port) as raw:
        with no_calls(fake):
            for route, own in allowed.items():
                for method in METHODS:
                    if method not in own:
                        answer = await raw.ask(method, path_of(route), *headers, body=body)
                        # What the server itself does not know as a method it answers with 405 or 501.
                        assert answer.status in (405, 501), (method, route, answer)


@pytest.mark.parametrize("role", ["nobody", "ordinary", "manages"])
async def test_p1_what_ollama_has_besides_does_not_exist(gateway, fake, role):
    known = {path_of(route) for _, route, _ in ROWS}
    async with RawClient(gateway.port) as raw:
        with no_calls(fake):
            for _, path in MANAGEMENT:
                if path not in known:
                    for method in METHODS[:6]:
                        answer = await raw.ask(method, path, *headers_of(gateway, role), body=b'{"model":"llama3.2"}')
                        assert answer.status == 404, (method, path, answer)


def tricks(path):
    """Targets and headers that some server would take for another call than they are."""
    yield f"{path}?stream=false", ()
    yield f"/api/status?path={path}", ()
    yield f"/api/tags?_method=DELETE&next={path}", ()
    yield f"http://127.0.0.1{path}", ()
    yield f"http://127.0.0.1/api/version?{path}", ()
    yield f"//127.0.0.1{path}", ()
    yield f"/api/version#{path}", ()
    for name in (b"X-Original-URL", b"X-Rewrite-URL", b"X-Forwarded-Uri", b"X-Forwarded-Path", b"Daphne-Root-Path"):
        yield "/api/version", ((name, path.encode()),)
    for name in (b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override"):
        yield path, ((name, b"DELETE"), (b"X-Gateway-Backend", b"one"))


async def test_p3_no_variant_of_a_management_path_leads_an_ordinary_key_to_a_backend(gateway, fake):
    headers = headers_of(gateway, "ordinary")
    asked = [
        (method, target, extra)
        for own, path in MANAGEMENT
        for target, extra in [*((spelling, ()) for spelling in odd_spellings(path)), *tricks(path)]
        for method in sorted({own, "POST", "DELETE"})
    ]
    statuses = {}

    async def ask_some(some):
        async with RawClient(gateway.port) as raw:
            for method, target, extra in some:
                answer = await raw.ask(method, target, *headers, *extra, body=b'{"model":"llama3.2"}')
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
                # A listing is one, whatever else the request says.
                plain = target.partition("?")[0] if isinstance(target, str) else ""
                listing = plain in ("/api/status", "/api/tags", "/api/version", "http://127.0.0.1/api/version")
                assert listing or 300 <= answer.status < 500, (method, target, extra, answer)

    with no_calls(fake):
        await asyncio.gather(*(ask_some(asked[first::4]) for first in range(4)))
    print(f"{len(asked)} requests: {dict(sorted(statuses.items()))}")
    assert sum(statuses.get(status, 0) for status in (400, 403, 404, 405)) > len(asked) * 0.9
    assert "to-delete:latest" in [model.name for model in fake.library.newest_first()]


async def test_p3_a_key_that_manages_needs_the_very_path(gateway, fake):
    headers = headers_of(gateway, "manages")
    body = b'{"model":"to-delete","source":"llama3.2","destination":"copied"}'
    async with RawClient(gateway.port) as raw:
        with no_calls(fake):
            for method, path in MANAGEMENT:
                for spelling in odd_spellings(path):
                    answer = await raw.ask(method, spelling, *headers, body=body)
                    assert 300 <= answer.status < 500, (method, spelling, answer)
