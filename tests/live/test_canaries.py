"""L7: unique secrets and prompts go through everything that a gateway does; then they are looked for where all it tells
is kept: logs, metrics, traces, errors, exports, the list of processes, files."""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from django.conf import settings

from proxy.credentials import seal
from proxy.fake_ollama import FakeOllama
from tests.live.collector import Collector
from tests.live.gateway import Gateway
from tests.live.raw import RawClient
from tests.live.signed_in import make_person, sign_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
PROMPT = "canary-prompt-5f1c9a"
CREDENTIAL = "canary-credential-77b2e0"
METRICS_TOKEN = "canary-metrics-token-c01d42"
# Stands where the name of a model should: its caller is told that there is none, and the record says what was asked.
NO_MODEL = "canary-model-61d0e5"
OTEL_TOKEN = "canary-collector-token-9e88aa"
OWN_SECRET = "canary-secret-key-of-django-3d19f7-0123456789-0123456789"


@dataclass
class Told:
    """What a gateway has told, by where."""

    gateway: Gateway
    collector: Collector
    canaries: dict[str, str]
    errors: list[bytes] = field(default_factory=list)
    exports: list[bytes] = field(default_factory=list)
    metrics: bytes = b""
    processes: bytes = b""

    def places(self) -> dict[str, bytes]:
        files = [path for path in self.gateway.directory.rglob("*") if path.is_file()]
        return {
            "log": self.gateway.log_path.read_bytes(),
            "metrics": self.metrics,
            "traces": self.collector.raw,
            "errors": b"\n".join(self.errors),
            "exports": b"\n".join(self.exports),
            "processes": self.processes,
            **{path.name: path.read_bytes() for path in files},
        }


async def every_wrong_way(told: Told, key: str, cookie: str) -> None:
    """Keys, prompts and cookies where they do not belong, and calls that fail in each of their ways."""
    gateway = told.gateway
    good = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    bodies = [
        json.dumps(body).encode()
        for body in (
            good, {"model": NO_MODEL, "messages": good["messages"]},
            {**good, "options": {"num_predict": PROMPT}}, {**good, "messages": PROMPT}, {PROMPT: key, **good},
            {**good, "format": {"type": PROMPT}}, {**good, "stream": PROMPT}, {**good, "tools": PROMPT},
        )
    ]  # fmt: skip
    bodies += [bodies[0][:-1], PROMPT.encode(), b'{"model": "' + PROMPT.encode() + b'\xff"}', bodies[0] + b"}"]
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    wrong = key[:-4] + "AAAA"
    async with RawClient(gateway.port) as raw:
        for headers in (
            {"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"authorization": f"Basic {basic}"},
            {"authorization": f"Bearer {wrong}"}, {"authorization": f"Digest {key}"}, {"cookie": f"sessionid={cookie}"},
        ):  # fmt: skip
            sent = [(name.encode(), value.encode()) for name, value in headers.items()]
            sent += [(b"user-agent", b"canary/1"), (b"traceparent", key.encode()), (b"x-request-id", b"a b")]
            for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/embed", "/api/show"):
                for body in bodies:
                    answer = await raw.ask("POST", path, *sent, body=body)
                    if answer.status != 200:
                        told.errors.append(repr(answer).encode())
        managing = (b"authorization", f"Bearer {key}".encode())
        for method, path in (("DELETE", "/api/delete"), ("POST", "/api/copy")):
            body = json.dumps({"model": NO_MODEL, "source": NO_MODEL, "destination": "x"}).encode()
            told.errors.append(repr(await raw.ask(method, path, managing, body=body)).encode())
        for path in (
            f"/api/chat?key={key}", f"/k/{key}/api/chat", f"/{key}", f"/v1/models/{NO_MODEL}", f"/api/{quote(PROMPT)}",
            f"/metrics?token={METRICS_TOKEN}", f"/usage/?q={PROMPT}", f"/requests/?model={key}", f"/admin/{key}/",
            f"/requests/{key}/", "/nowhere/",
        ):  # fmt: skip
            for method in ("GET", "POST", "DELETE", "FROB"):
                session = (b"cookie", f"sessionid={cookie}; csrftoken=x".encode())
                answer = await raw.ask(method, path, session, body=bodies[0] if method == "POST" else b"")
                if answer.status >= 400:
                    told.errors.append(repr(answer).encode())


async def every_failure(told: Told, key: str, fake: FakeOllama) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    for fault in (
        {"status": 500, "error": "it broke"}, {"status": 503, "error": "busy"}, {"status": 400, "error": "bad options"},
        {"eof_after_chunks": 1}, {"reset_after_chunks": 1}, {"error_after_chunks": 1}, {"close_before_headers": True},
    ):  # fmt: skip
        fake.faults(times=1, path="/api/chat", model=MODEL, **fault)
        async with told.gateway.client(key) as client:
            answer = await client.post("/api/chat", json=body)
            told.errors.append(answer.content + repr(answer.headers).encode())
        fake.clear_faults()
        async with told.gateway.client(key) as client:  # the breaker counts failures in a row
            assert (await client.post("/api/chat", json=body)).status_code == 200
    # What a backend says may hold what it was asked, or what it answered.
    for status in (200, 500):
        for stream in (False, True):
            fake.faults(times=1, path="/api/chat", model=MODEL, status=status, error=f"parsing failed: raw='{PROMPT}'")
            async with told.gateway.client(key) as client:
                await client.post("/api/chat", json={**body, "stream": stream})
                fake.clear_faults()
                assert (await client.post("/api/chat", json=body)).status_code == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(make_shared_gateway):
    collector = Collector().start()
    async with FakeOllama(models=[MODEL], slots=8) as fake:
        gateway = make_shared_gateway(
            SECRET_KEY=OWN_SECRET, ACCESS_LOG="True", LOG_LEVEL="DEBUG", METRICS_TOKEN=METRICS_TOKEN,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS=f"authorization={OTEL_TOKEN}",
        )  # fmt: skip
        before = settings.SECRET_KEY
        settings.SECRET_KEY = OWN_SECRET
        try:
            sealed = seal(CREDENTIAL)
        finally:
            settings.SECRET_KEY = before
        gateway.make_backend(fake.url, credential_header="X-Backend-Token", credential_encrypted=sealed)
        _, key = gateway.make_key()
        user = make_person(gateway, "alice", acme="owner")
        await asyncio.to_thread(gateway.start)
        await gateway.until_it_lists(MODEL, key=key)
        cookie = sign_in(gateway, user)
        secret = key.split("_")[2]
        made = Told(gateway, collector, {
            "key": secret, "prompt": PROMPT, "cookie": cookie, "credential": CREDENTIAL,
            "pepper": gateway.env["KEY_PEPPER"],
            "metrics token": METRICS_TOKEN, "collector token": OTEL_TOKEN, "secret key": OWN_SECRET,
        })  # fmt: skip
        await every_wrong_way(made, key, cookie)
        await every_failure(made, key, fake)
        async with gateway.client(cookies={"sessionid": cookie}) as client:
            for path in ("/usage/sums.csv", "/usage/sums.json", "/requests/list.csv", "/requests/list.json"):
                answer = await client.get(path)
                assert answer.status_code == 200, (path, answer.text)
                made.exports.append(answer.content)
            made.metrics = (await client.get("/metrics")).content
        made.processes = b"\n".join(
            path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)
        )
        # The last trace and line are out.
        await asyncio.to_thread(gateway.stop)
        assert any(call.header("x-backend-token") == CREDENTIAL for call in fake.calls)
    yield made
    collector.close()


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


async def test_l7_no_canary_is_found_anywhere(told):
    places = told.places()
    found = []
    for name, canary in told.canaries.items():
        for place, content in places.items():
            if name == "cookie" and "sqlite3" in place:
                continue  # sessions are rows
            if canary.encode() in content or quote(canary).encode() in content:
                at = content.find(canary.encode())
                found.append(f"{name} in {place}: {content[max(at - 80, 0) : at + 20]!r}")
    assert not found


async def test_l7_l8_what_stands_for_a_model_that_is_none_goes_to_no_log_metric_or_trace(told):
    places = told.places()
    assert NO_MODEL.encode() in places["errors"]
    for place in ("log", "metrics", "traces", "processes"):
        assert NO_MODEL.encode() not in places[place], place


async def test_l7_the_places_are_those_that_would_hold_them(told):
    """A search that looks in the wrong place finds nothing, too."""
    places = told.places()
    assert b'"endpoint":"/api/chat"' in places["log"]
    assert b"gateway_requests_total" in places["metrics"]
    assert b"/api/chat" in places["traces"]
    assert len(told.errors) > 100
    assert b"acme" in places["exports"]
    assert b"manage.py" in places["processes"]
    assert any("sqlite3" in place for place in places)
    for place in ("log", "exports"):
        assert MODEL.encode() in places[place], place
