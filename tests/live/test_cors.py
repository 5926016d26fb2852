"""Row P11 with real servers: which web pages may call, by origin, route, method and credential."""

import asyncio
import json

import pytest
import pytest_asyncio

from tenants.models import IPRule
from tests.live.raw import RawClient, bearer
from tests.live.seen import no_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTED, FOREIGN = b"https://app.example.com", b"https://evil.example"
CHAT = json.dumps({"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]}).encode()
GRANTS = {"access-control-allow-origin", "access-control-expose-headers"}
# method, path, body
ROUTES = [
    ("GET", "/", b""),
    ("HEAD", "/", b""),
    ("GET", "/api/version", b""),
    ("GET", "/api/tags", b""),
    ("HEAD", "/api/tags", b""),
    ("POST", "/api/chat", CHAT),
    ("POST", "/api/show", b'{"model":"llama3.2"}'),
    ("POST", "/api/embed", b'{"model":"nomic-embed-text","input":"x"}'),
    # errors
    ("POST", "/api/chat", b"{"),
    ("POST", "/api/chat", b'{"model":"nope","messages":[]}'),
    ("GET", "/api/chat", b""),
    ("GET", "/api/nothing", b""),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(
        CORS_ORIGINS="https://*.example.com",
        OLLAMA_ORIGINS="http://localhost:*",
    )
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key(may_be_in_path=True)
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", key=made.key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyless(make_shared_gateway, shared_fake):
    """A gateway on whose network calls need no key."""
    made = make_shared_gateway(CORS_ORIGINS=LISTED.decode(), ALLOWED_HOSTS="gateway.example.com,*")
    made.make_backend(shared_fake.url, slots=8)
    row, made.key = made.make_key()
    made.rows(IPRule).create(cidr="127.0.0.0/8", action="allow", acts_as=row)
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", key=made.key)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


def cors(answer):
    return {name: value for name, value in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", [LISTED, b"http://localhost:5173", b"own", FOREIGN, b"null", None])
async def test_p11_every_answer_says_to_the_right_pages_that_they_may_read_it(gateway, raw, origin):
    """origin × route × method × credential: good answers, errors and refusals alike."""
    if origin == b"own":
        origin = b"http://127.0.0.1"  # the Host that `raw` sends
    allowed = origin not in (FOREIGN, b"null", None)
    credentials = [[], [bearer(gateway.key)], [(b"X-Api-Key", gateway.key.encode())], [bearer("wrong")]]
    credentials.append([bearer(gateway.key), (b"Cookie", b"sessionid=x; csrftoken=y")])
    for method, path, body in ROUTES:
        for headers in credentials:
            sent = [*headers, *([(b"Origin", origin)] if origin else [])]
            plain = await raw.ask(method, path, *headers, body=body)
            answer = await raw.ask(method, path, *sent, body=body)
            assert answer.status == plain.status, (method, path, headers)
            assert set(cors(answer)) == (GRANTS if allowed else set()), (method, path, headers, answer)
            if allowed:
                assert cors(answer)["access-control-allow-origin"].encode() == origin
                exposed = cors(answer)["access-control-expose-headers"].split(", ")
                assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens", "x-gateway-error"} <= set(
                    exposed
                )
            assert (answer.all("vary") == ["Origin"]) is (origin is not None)


async def test_p11_a_stream_carries_the_permission_too(gateway, fake):
    headers = {"origin": LISTED.decode()}
    async with (
        gateway.client(gateway.key) as client,
        client.stream("POST", "/api/chat", content=CHAT, headers=headers) as answer,
    ):
        assert answer.headers["access-control-allow-origin"] == LISTED.decode()
        assert "ndjson" in answer.headers["content-type"]
        assert len([line async for line in answer.aiter_lines()]) > 2


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/", "path key"])
@pytest.mark.parametrize("origin", [LISTED, FOREIGN])
async def test_p11_a_preflight_is_answered_without_a_key_and_without_a_backend(gateway, fake, raw, path, origin):
    path = f"/k/{gateway.key}/api/chat" if path == "path key" else path
    asked = b"authorization,content-type,x-stainless-lang,x-stainless-new-thing,x-evil"
    with no_calls(fake):
        answer = await raw.ask(
            "OPTIONS",
            path,
            (b"Origin", origin),
            (b"Access-Control-Request-Method", b"POST"),
            (b"Access-Control-Request-Headers", asked),
        )
    assert answer.all("vary") == ["Origin"]
    if origin == FOREIGN:
        assert (answer.status, cors(answer)) == (403, {})
        assert answer.all("x-gateway-error") == ["origin_not_allowed"]
        return
    assert (answer.status, answer.body) == (204, b"")
    said = cors(answer)
    assert said["access-control-allow-origin"].encode() == origin
    assert "access-control-allow-credentials" not in said
    methods = set(said["access-control-allow-methods"].split(", "))
    assert methods == ({"POST", "OPTIONS"} if "chat" in path else {"GET", "HEAD", "OPTIONS"})
    names = said["access-control-allow-headers"].lower().split(", ")
    assert {
        *("authorization", "content-type", "user-agent", "accept", "x-requested-with", "openai-beta", "x-api-key"),
        *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
        *("x-stainless-lang", "x-stainless-new-thing"),
    } <= set(names)
    assert "x-evil" not in names
    assert "*" not in names


async def test_p11_options_that_is_no_preflight_is_no_method(gateway, raw):
    assert (await raw.ask("OPTIONS", "/api/chat", bearer(gateway.key))).status == 405
    assert (await raw.ask("OPTIONS", "/api/chat", (b"Origin", LISTED))).status == 405
    preflight = ((b"Origin", LISTED), (b"Access-Control-Request-Method", b"POST"))
    assert (await raw.ask("OPTIONS", "/api/nothing", *preflight)).status == 404


async def test_p11_a_cookie_is_no_credential_and_a_key_opens_no_page(gateway, fake, raw):
    key = gateway.key.encode()
    with no_calls(fake):
        for cookie in (b"sessionid=" + key, b"Authorization=Bearer " + key, b"x-api-key=" + key):
            assert (await raw.ask("POST", "/api/chat", (b"Cookie", cookie), body=CHAT)).status == 401
        for path in ("/admin/", "/admin/tenants/apikey/"):
            for header in (bearer(gateway.key), (b"X-Api-Key", key)):
                answer = await raw.ask("GET", path, header, (b"Origin", LISTED), (b"Host", b"localhost"))
                assert answer.status in (302, 400, 403), path
                assert cors(answer) == {}


# Keyless: the place in the network is the credential


def page(origin, *headers):
    return [(b"Origin", origin), *headers] if origin else list(headers)


@pytest.mark.parametrize("method_path", [("GET", "/api/tags", b""), ("POST", "/api/chat", CHAT)])
@pytest.mark.parametrize(
    ("origin", "credential", "status"),
    [
        (None, b"", 200),
        (LISTED, b"", 200),
        (b"http://127.0.0.1", b"", 200),
        (FOREIGN, b"", 403),
        (b"null", b"", 403),
        (FOREIGN, b"not-needed", 403),
        (FOREIGN, b"key", 200),
    ],
)
async def test_p11_a_foreign_page_cannot_borrow_its_visitors_place(
    keyless, fake, method_path, origin, credential, status
):
    method, path, body = method_path
    headers = page(origin)
    if credential:
        headers.append(bearer(keyless.key if credential == b"key" else credential.decode()))
    async with RawClient(keyless.port) as raw:
        since = fake.log.totals.calls
        answer = await raw.ask(method, path, *headers, body=body)
        assert answer.status == status
        if status == 403:
            assert answer.all("x-gateway-error") == ["origin_not_allowed"]
            assert not [call for call in fake.calls if call.index >= since and call.method == "POST"]
        assert bool(cors(answer)) is (origin in (LISTED, b"http://127.0.0.1"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("my-laptop.local", 200),
        ("gateway.example.com", 200),
        ("rebound.evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
async def test_p11_a_name_that_was_rebound_to_us_is_refused_without_a_key(keyless, fake, host, status):
    host = host.format(port=keyless.port)
    # As a browser sends it: by the name of the page, which is the name of the host.
    headers = {"host": host, "origin": f"http://{host}"}
    async with keyless.client() as client:
        since = fake.log.totals.calls
        answer = await client.post("/api/chat", content=CHAT, headers=headers)
        assert answer.status_code == status, answer.text
        if status == 403:
            assert answer.headers["x-gateway-error"] == "host_not_known"
            assert not [call for call in fake.calls if call.index >= since and call.method == "POST"]
    async with keyless.client(keyless.key) as client:
        assert (await client.post("/api/chat", content=CHAT, headers=headers)).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
async def test_i1_who_comes_through_an_unlisted_proxy_is_not_on_this_network(keyless, header):
    async with keyless.client() as client:
        answer = await client.get("/api/tags", headers={header: "127.0.0.1"})
        assert (answer.status_code, answer.headers["x-gateway-error"]) == (403, "proxy_not_trusted")
    async with keyless.client(keyless.key) as client:
        assert (await client.get("/api/tags", headers={header: "127.0.0.1"})).status_code == 200
