"""Rows P1–P10 with real servers: what a client sends as path, method or header, and what of it arrives anywhere."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.faults import HOSTILE_HEADERS
from tests.live.raw import RawClient, bearer
from tests.live.seen import new_calls, no_calls
from tests.proxy.odd_paths import odd_spellings

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


CHAT = json.dumps(chat(stream=False, options={"num_predict": 3})).encode()
STREAM = json.dumps(chat(options={"num_predict": 3})).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key()
    _, made.managing_key = made.make_key("manages", may_manage=True)
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


def not_found(path, answer):
    """400 where the server finds it is no URL. What begins with /admin/ is a page's, which asks for a sign-in first."""
    return answer.status in (400, 404) or (path.startswith(b"/admin/") and answer.status in (302, 403))


# P1–P3: routes


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/api/generate"])
async def test_p3_no_other_spelling_of_a_route_is_served(gateway, fake, raw, path):
    with no_calls(fake):
        for spelling in odd_spellings(path):
            answer = await raw.ask("POST", spelling, bearer(gateway.key), body=CHAT)
            assert not_found(spelling, answer), (spelling, answer)
            assert b"done" not in answer.body


async def test_p4_the_backend_gets_the_path_of_the_table_without_a_query(gateway, fake, raw):
    with new_calls(fake) as seen:
        for query in (b"?beta=true", b"?model=other&path=/api/delete", b"?%0d%0aX:y", b"?", b"?#x"):
            answer = await raw.ask("POST", b"/api/chat" + query, bearer(gateway.key), body=CHAT)
            assert answer.status == (400 if b"#" in query else 200), query
    assert [(call.method, call.target) for call in seen] == [("POST", "/api/chat")] * 4


# P5, P6: moving past a guard


@pytest.mark.parametrize(
    "header",
    [
        *((b"Daphne-Root-Path", b"/v"), (b"Daphne-Root-Path", b"/v/admin"), (b"X-Original-URL", b"/admin/")),
        *(
            (b"X-Rewrite-URL", b"/admin/"),
            (b"Script-Name", b"/v"),
            (b"SCRIPT_NAME", b"/v"),
            (b"X-Forwarded-Prefix", b"/v"),
        ),
        *((b"X-Script-Name", b"/v"), (b"X-Forwarded-Path", b"/admin/"), (b"Path-Info", b"/admin/")),
    ],
)
async def test_p5_no_header_moves_a_request(gateway, fake, raw, header):
    with no_calls(fake):
        assert (await raw.ask("GET", "/v/admin/", header)).status == 404
        assert (await raw.ask("GET", "/v/metrics", header)).status == 404
        answer = await raw.ask(
            "POST", "/api/delete", bearer(gateway.managing_key), header, body=b'{"model":"llama3.2"}'
        )
        assert answer.status == 405
    with new_calls(fake) as seen:
        elsewhere = (header[0], b"/api/delete")
        assert (await raw.ask("POST", "/api/chat", bearer(gateway.key), elsewhere, body=CHAT)).status == 200
    assert [(call.method, call.target) for call in seen] == [("POST", "/api/chat")]


@pytest.mark.parametrize("override", [b"X-HTTP-Method-Override", b"X-HTTP-Method", b"X-Method-Override", b"_method"])
async def test_p6_a_method_is_what_the_request_line_says(gateway, fake, raw, override):
    with no_calls(fake):
        answer = await raw.ask("GET", "/api/chat?_method=POST", bearer(gateway.key), (override, b"POST"), body=CHAT)
        assert answer.status == 405
        assert answer.all("allow") == ["POST"]
    with new_calls(fake) as seen:
        answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), (override, b"DELETE"), body=CHAT)
        assert answer.status == 200
    assert [call.method for call in seen] == ["POST"]


@pytest.mark.parametrize(
    "method",
    ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "PROPFIND", "post", "Post", "FROBNICATE", "CONNECT"],
)
async def test_p6_other_methods_are_405_and_no_label(gateway, fake, raw, method):
    with no_calls(fake):
        for path in ("/api/chat", "/api/delete", "/nowhere"):
            answer = await raw.ask(method, path, bearer(gateway.key), body=CHAT)
            assert answer.status in (400, 403, 404, 405), (path, answer)
            assert path != "/api/chat" or answer.status != 404
            assert b"Bearer" not in answer.body  # TRACE
    metrics = (await raw.ask("GET", "/metrics")).body.decode()
    assert "gateway_refusals_total" in metrics
    assert "FROBNICATE" not in metrics
    assert "PROPFIND" not in metrics
    assert "/nowhere" not in metrics


# P7, P9: what a backend says


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_p7_a_redirect_of_a_backend_is_never_followed(gateway, fake, raw, status, body):
    async with FakeOllama(models=["llama3.2"]) as trap:
        fake.faults(times=1, path="/api/chat", redirect=status, location=f"{trap.url}/api/chat")
        answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), body=body)
        assert answer.status == 502
        assert answer.all("location") == []
        assert trap.url.encode() not in answer.body
        assert trap.calls == []
    record = await gateway.record(answer.all("x-request-id")[0])
    assert (record.outcome, record.status) == ("failed", 502)


NEVER_PASSED = {name.lower() for name, _ in HOSTILE_HEADERS} - {"server"}


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_p9_headers_of_a_hostile_backend_stay_with_us(gateway, fake, raw, body):
    more = [
        *(("Link", "<https://evil/>"), ("Refresh", "0; url=https://evil/"), ("X-Request-Id", "evil")),
        *(("X-Gateway-Backend", "evil"), ("X-RateLimit-Remaining", "0"), ("Strict-Transport-Security", "max-age=0")),
        *(("Content-Security-Policy", "default-src *"), ("X-Content-Type-Options", "x"), ("Via", "1.1 internal")),
        *(("Cache-Control", "public"), ("WWW-Authenticate", "Basic"), ("Alt-Svc", 'h3="evil:443"'), ("Trailer", "x")),
    ]
    fake.faults(times=1, path="/api/chat", hostile_headers=True, headers=more)
    answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), body=body)
    assert answer.status == 200
    names = {name for name, _ in answer.headers}
    assert names <= {
        *("content-type", "content-length", "transfer-encoding", "x-request-id", "x-gateway-backend", "date", "server"),
        *("x-gateway-queue-ms", "cache-control", "x-content-type-options", "content-security-policy", "connection"),
        "x-accel-buffering",
    }
    assert not names & NEVER_PASSED
    for name, value in answer.headers:
        assert "evil" not in value, name
    assert answer.all("x-content-type-options") == ["nosniff"]
    assert answer.all("cache-control") == ["no-store"]
    assert answer.all("content-security-policy")[0].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "application/javascript", "text/html; application/json"]
)
@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_p9_an_answer_of_another_type_is_none(gateway, fake, raw, kind, body):
    fake.faults(times=1, path="/api/chat", content_type=kind)
    answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), body=body)
    assert (answer.status, answer.all("content-type")) == (502, ["application/json; charset=utf-8"])


async def test_p9_our_own_refusals_carry_the_same_headers(gateway, fake, raw):
    for path, status in (("/api/chat", 401), ("/api/nope", 404)):
        answer = await raw.ask("POST", path, body=CHAT)
        assert answer.status == status
        assert answer.all("x-content-type-options") == ["nosniff"]
        assert answer.all("cache-control") == ["no-store"]
        assert len(answer.all("x-request-id")) == 1


# P8: what a client says to a backend

OURS = {"host", "content-type", "content-length", "accept-encoding", "x-request-id", "x-ollama-gateway-hops"}


async def test_p8_a_backend_sees_the_allowed_headers_and_ours(gateway, fake, raw):
    sent = [
        bearer(gateway.key),
        (b"X-Api-Key", gateway.key.encode()),
        *((b"Cookie", b"sessionid=x"), (b"Origin", b"https://evil.example"), (b"Referer", b"https://evil.example/x")),
        *((b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-Host", b"evil"), (b"Forwarded", b"for=6.6.6.6")),
        *(
            (b"X-Real-IP", b"6.6.6.6"),
            (b"TE", b"trailers"),
            (b"Accept-Encoding", b"gzip, br"),
            (b"Range", b"bytes=0-1"),
        ),
        *((b"Content-Type", b"text/html"), (b"If-None-Match", b"x"), (b"Via", b"1.1 x"), (b"Priority", b"u=0")),
        *((b"user_agent", b"underscored"), (b"openai_beta", b"underscored"), (b"x_api_key", b"underscored")),
        *((b"Connection", b"keep-alive, OpenAI-Secret"), (b"OpenAI-Secret", b"named"), (b"X-Request-Id", b"client-1")),
        *((b"X-Ollama-Gateway-Hops", b"abc"), (b"Traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")),
        *(
            (b"User-Agent", b"test/1"),
            (b"Accept", b"*/*"),
            (b"Anthropic-Version", b"2023-06-01"),
            (b"OpenAI-Beta", b"x"),
        ),
    ]
    with new_calls(fake) as seen:
        answer = await raw.ask("POST", "/api/chat", *sent, body=CHAT)
        assert answer.status == 200
    (call,) = seen
    got = {}
    for name, value in call.headers:
        assert name.lower() not in got, f"{name} twice"
        got[name.lower()] = value
    assert got.keys() == OURS | {"user-agent", "accept", "anthropic-version", "openai-beta", "traceparent"}
    assert got["host"] == fake.url.removeprefix("http://")
    assert got["accept-encoding"] == "identity"
    assert got["content-type"] == "application/json"
    assert got["content-length"] == str(len(call.body))
    assert got["x-request-id"] == answer.all("x-request-id")[0]
    assert got["user-agent"] == "test/1"
    text = repr(call.headers)
    for secret in (gateway.key, "sessionid", "evil", "6.6.6.6", "underscored", "named"):
        assert secret not in text


async def test_p8_the_credential_of_a_backend_is_ours_and_sent_once(make_shared_gateway, fake):
    from django.conf import settings

    from proxy.credentials import seal

    made = make_shared_gateway(SECRET_KEY=settings.SECRET_KEY)
    sealed = seal("Bearer of the backend")
    made.make_backend(fake.url, credential_header="Authorization", credential_encrypted=sealed)
    _, key = made.make_key()
    await asyncio.to_thread(made.start)
    with new_calls(fake) as seen:
        async with RawClient(made.port) as client:
            assert (await client.ask("POST", "/api/chat", bearer(key), body=CHAT)).status == 200
    values = [value for name, value in seen[0].headers if name.lower() == "authorization"]
    assert values == ["Bearer of the backend"]
    assert key not in repr(seen[0].headers)


# P10: values we set or take over


@pytest.mark.parametrize(
    "value", [b"<script>alert(1)</script>", b"a b", b"x" * 200, b"\xc3\xbc", b"{{7*7}}", b"'; drop--"]
)
async def test_p10_an_odd_request_id_is_neither_echoed_nor_kept(gateway, fake, raw, value):
    answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), (b"X-Request-Id", value), body=CHAT)
    assert answer.status == 200
    ids = answer.all("x-request-id")
    assert len(ids) == 1
    assert value.decode("latin-1") not in repr(answer.headers)
    record = await gateway.record(ids[0])
    assert (record.client_request_id, record.id.hex) == ("", ids[0])


async def test_p10_u2_a_good_request_id_is_a_column_and_no_more(gateway, fake, raw):
    answers = [
        await raw.ask("POST", "/api/chat", bearer(gateway.key), (b"X-Request-Id", b"client/1"), body=CHAT)
        for _ in range(3)
    ]
    ids = {answer.all("x-request-id")[0] for answer in answers}
    assert len(ids) == 3
    records = await gateway.wait_for_records(3, client_request_id="client/1")
    assert {record.id.hex for record in records} == ids


@pytest.mark.parametrize("name", ["x\r\nset-cookie: a=b", "x\n\nHTTP/1.1 200 OK", "\x00", "ü", "x" * 100_000])
async def test_p10_no_name_that_a_client_makes_up_gets_into_a_header(gateway, fake, raw, name):
    """x-gateway-adjusted tells which options were dropped."""
    body = json.dumps(chat(stream=False, options={"num_predict": 3, "num_gpu": 1, name: 1})).encode()
    answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), body=body)
    if name == "ü":
        assert answer.status == 400
        return
    assert answer.status == 200
    assert answer.all("set-cookie") == []
    assert answer.all("x-gateway-adjusted") == ["options.num_gpu, unknown options"]


@pytest.mark.parametrize("value", [b"junk", b"00-" + b"f" * 600, b"\xff", b"00-0-0-01"])
async def test_p10_trace_headers_decide_nothing(gateway, fake, raw, value):
    headers = [(name, value) for name in (b"Traceparent", b"Tracestate", b"Baggage", b"X-B3-Sampled")]
    with new_calls(fake) as seen:
        answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), *headers, body=CHAT)
        assert answer.status == 200
    assert not {name.lower() for name, _ in seen[0].headers} & {"baggage", "x-b3-sampled"}
    assert all(len(text) <= 512 and text.isascii() for _, text in seen[0].headers)


async def test_p10_j12_no_label_of_an_app_chooses_an_account(gateway, fake, raw):
    headers = [(b"X-OpenWebUI-User-Id", b"admin<b>"), (b"X-OpenWebUI-User-Role", b"admin"), (b"X-Tenant", b"other")]
    body = json.dumps(
        chat(stream=False, user="root", tenant="other", id="0" * 32, backend="two", metadata={"user_id": 1})
    )
    answer = await raw.ask("POST", "/api/chat", bearer(gateway.key), *headers, body=body.encode())
    record = await gateway.record(answer.all("x-request-id")[0])
    assert (record.tenant_name, record.key_name, record.end_user) == ("acme", "key", "admin<b>")
    assert record.backend == "one"
    assert httpx.Headers(answer.headers)["x-gateway-backend"] == "one"
