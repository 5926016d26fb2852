"""What users of five earlier Ollama proxies must find again: each command, URL, field, variable and sample of theirs.

An entry is executed against real gateways, or says why it differs. The table of docs/switching.md is made from this
one; write_page() writes it anew, e.g. by
python manage.py shell -c "from tests.live.test_predecessors import write_page; write_page()"
"""

import asyncio
import json
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import trustme
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway_site import settings as settings_module
from gateway_site.server.listeners import what_to_do
from proxy.fake_ollama import FakeOllama
from proxy.models import Backend
from tenants.models import ApiKey, IPRule, Limit, Tenant
from tests.live.gateway import ROOT, Gateway
from tests.live.seen import calls
from tests.no_tls import NO_TLS
from tests.ports import free_port
from usage.models import StoredText

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = ROOT / "docs" / "switching.md"
BEGIN, END = "<!-- table: tests/live/test_predecessors.py -->", "<!-- end of the table -->"
MODELS = ["llama3.2:1b", "llama3.1:8b", "llama3", "codellama:34b", "phi4", "nomic-embed-text"]

A = "The caching proxy in Rust (port 8080, `OLLAMA_URL`)"
B = "The gateway in Go with `config.json` (port 8080)"
C = "The metrics proxy in Go (port 8080, `-listen`, `-upstream`)"
D = "The Windows-friendly proxy in Go (port 11434 in front of 11435)"
E = "The monitoring proxy in Go (port 11434, metrics on 9090)"


@dataclass(frozen=True)
class Cast:
    """The gateways that entries are tried on."""

    gateway: Gateway  # as users of A–D start it: flags, no key
    by_variables: Gateway  # as users of E do
    by_file: Gateway  # as users of B do: config.json is there, and nothing else is said
    metrics_port: int
    fake: FakeOllama

    def client(self, gateway: Gateway | None = None, **headers: str) -> httpx.AsyncClient:
        chosen = gateway or self.gateway
        return httpx.AsyncClient(base_url=chosen.url, headers=headers, trust_env=False, verify=NO_TLS, timeout=30)


Check = Callable[[Cast], Any]


@dataclass(frozen=True)
class Entry:
    who: str
    what: str  # as they write it
    here: str  # what it is here
    check: Check | None = None
    differs: str = ""  # because …

    @property
    def verdict(self) -> str:
        return f"differs, because {self.differs}" if self.differs else "works"


# How entries are tried


def curl(line: str) -> Check:
    """Does what a sample's curl would do, with the sample's own words."""

    async def ask(cast: Cast) -> None:
        words = shlex.split(line)
        headers, body, url, method = {}, None, "", "GET"
        words = iter(words[1:])
        for word in words:
            if word == "-H":
                name, value = next(words).split(": ", 1)
                headers[name] = value
            elif word == "-d":
                body, method = next(words), "POST"
            elif word == "-X":
                method = next(words)
            elif not word.startswith("-"):
                url = word
        path = re.sub(r"^http://localhost:\d+", "", url)
        async with cast.client(**headers) as client:
            answer = await client.request(method, path, content=body)
        assert answer.status_code == 200, answer.text
        if body and '"stream":true' not in body:
            said = answer.json()
            assert said["done"] is True
            assert said["response"]
            assert said["model"] == json.loads(body)["model"]
        elif body:
            lines = [json.loads(part) for part in answer.text.splitlines()]
            assert len(lines) > 1
            assert lines[-1]["done"] is True
            assert lines[-1]["eval_count"] > 0

    return ask


def found(path: str, *, status: int = 200, holds: str = "") -> Check:
    async def ask(cast: Cast) -> None:
        async with cast.client() as client:
            answer = await client.get(path)
        assert answer.status_code == status, (path, answer.status_code)
        assert holds in answer.text

    return ask


def metric(name: str, kind: str, *labels: str) -> Check:
    """A family of this name and type, with at least these labels on its samples."""

    async def ask(cast: Cast) -> None:
        text = await their_numbers(cast)
        assert f"# TYPE {name} {kind}\n" in text
        sample = re.search(rf"^{name}(?:_bucket|_count|_sum)?(?:\{{(.*?)\}})? ", text, re.MULTILINE)
        assert sample is not None
        for label in labels:
            assert f'{label}="' in sample[1]

    return ask


async def their_numbers(cast: Cast) -> str:
    """The page of metrics after the calls of their samples, one of which fails."""
    async with cast.client() as client:
        for model, stream in (("codellama:34b", False), ("llama3", True)):
            body = {"model": model, "prompt": "Hi", "stream": stream}
            assert (await client.post("/api/generate", json=body)).status_code == 200
        assert (await client.post("/api/generate", json={"model": "none", "prompt": "Hi"})).status_code == 404
        return (await client.get("/metrics")).text


def sample(line: str) -> Check:
    """A line that their README shows: of this name, with these values of these labels; the number is another."""

    async def ask(cast: Cast) -> None:
        wanted = next(iter(samples_in(line)))
        found = [each for each in samples_in(await their_numbers(cast)) if each.name == wanted.name]
        alike = [each for each in found if wanted.labels.items() <= each.labels.items()]
        assert alike, found[:5]
        assert wanted.labels.get("le") or sum(each.value for each in alike) > 0

    return ask


def samples_in(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text + "\n"):
        yield from family.samples


async def traced(cast: Cast) -> None:
    """tests/live/test_traces.py tries it; here, that it is a setting."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "from gateway_site.settings import GATEWAY; print(GATEWAY.otel_endpoint)"],
        cwd=ROOT, env={**cast.gateway.env, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "http://collector:4318\n", done.stderr


def comes_with_it(pattern: str) -> Check:
    async def look(cast: Cast) -> None:
        assert list(ROOT.glob(pattern))

    return look


def command(line: str, *, says: str, code: int = 0) -> Check:
    """Runs `manage.py …` beside the gateway, on its database."""

    async def run(cast: Cast) -> None:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "manage.py", *shlex.split(line)],
            cwd=ROOT,
            env=cast.gateway.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr

    return run


def recorded(**wanted: Callable[[Any], bool]) -> Check:
    """A call leaves a record whose columns are as wanted."""

    async def ask(cast: Cast) -> None:
        async with cast.client(**{"user-agent": "their-app/1.0", "x-request-id": "their-id-1"}) as client:
            answer = await client.post("/api/generate", json={"model": "llama3", "prompt": "Hi"})
        record = await cast.gateway.record(answer.headers["x-request-id"])
        for column, holds in wanted.items():
            assert holds(getattr(record, column)), (column, getattr(record, column))

    return ask


async def texts_are_stored(cast: Cast) -> None:
    cast.gateway.rows(Tenant).update(keeps_texts=True)
    prompt = "to be kept " * 200
    async with cast.client() as client, asyncio.timeout(20):
        while True:  # the switch acts within a second
            answer = await client.post("/api/generate", json={"model": "llama3", "prompt": prompt, "stream": False})
            await cast.gateway.record(answer.headers["x-request-id"])
            await asyncio.sleep(0.3)
            text = cast.gateway.rows(StoredText).filter(pk=answer.headers["x-request-id"]).first()
            if text is not None:
                break
    assert text.prompt == prompt[:1000]
    assert text.answer
    assert answer.json()["response"].startswith(text.answer[:20])


async def searched(cast: Cast) -> None:
    async with cast.client(**{"x-request-id": "to-be-searched"}) as client:
        answer = await client.post("/api/generate", json={"model": "llama3", "prompt": "Hi"})
        record = await cast.gateway.record(answer.headers["x-request-id"])
        query = "model=llama3&start_time=2020-01-01&end_time=2999-01-01&limit=10"
        results = (await client.get(f"/analytics/search?{query}")).json()["results"]
        assert str(record.pk) in {result["id"] for result in results}
        exported = (await client.get("/analytics/export?client_id=to-be-searched")).json()
    assert [row["id"] for row in exported] == [str(record.pk)]


def positive(value: int) -> bool:
    return value > 0


async def default_port(cast: Cast) -> None:
    env = {name: value for name, value in cast.gateway.env.items() if name not in ("PORT", "OLLAMA_PROXY_PORT")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "manage.py", "serve", "--help"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Port (default: 8080)" in " ".join(done.stdout.split())


async def upstream_by_flag(cast: Cast) -> None:
    row = cast.gateway.rows(Backend).get(name="default")
    assert (row.url, row.set_by_environment) == (cast.fake.url, True)


async def upstream_by_host_and_port(cast: Cast) -> None:
    row = cast.by_variables.rows(Backend).get(name="default")
    assert (row.url, row.set_by_environment) == (cast.fake.url.replace("127.0.0.1", "localhost"), True)


async def port_by_variable(cast: Cast) -> None:
    async with cast.client(cast.by_variables) as client:
        assert (await client.get("/")).text == "Ollama is running"


async def metrics_on_their_port(cast: Cast) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
        answer = await client.get(f"http://localhost:{cast.metrics_port}/metrics")
    assert answer.status_code == 200
    assert "gateway_" in answer.text


def starts_with(variable: str, value: str) -> Check:
    """The variable is read: a value that cannot be is refused by name, this one is not."""

    async def check(cast: Cast) -> None:
        for text, code in ((value, 0), ("not\x01possible", 1)):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", "from gateway_site import settings"],
                cwd=ROOT, env={**cast.gateway.env, variable: text}, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            assert code == 0 or f"{variable}=" in done.stderr

    return check


async def per_client_address(cast: Cast) -> None:
    """25 requests in 30 s per client address; of one model, so that other entries are not disturbed."""
    cast.gateway.rows(Limit).create(
        scope="address", metric="requests", window="seconds", window_seconds=30, amount=25, model="nomic-embed-text"
    )
    statuses: list[int] = []
    async with cast.client() as client:
        async with asyncio.timeout(20):
            while 429 not in statuses:  # the limit is in force within a second
                answer = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": "x"})
                statuses.append(answer.status_code)
    assert len(statuses) > 25
    assert int(answer.headers["retry-after"]) <= 31  # the window moves in steps, never early


async def denied_addresses(cast: Cast) -> None:
    cast.gateway.rows(IPRule).create(cidr="203.0.113.0/24", action="deny")
    # The gateway believes loopback what it says of others.
    async with cast.client(**{"x-forwarded-for": "203.0.113.7"}) as client, asyncio.timeout(20):
        while (answer := await client.get("/api/tags")).status_code != 403:
            await asyncio.sleep(0.05)
    assert answer.headers["x-gateway-error"] == "ip_denied"


async def accepted(cast: Cast, key: str, *, header: str = "authorization") -> None:
    """Returns when a key that was just made is in force."""
    async with cast.client(**{header: key}) as client, asyncio.timeout(20):
        while (await client.get("/api/tags")).status_code != 200:
            await asyncio.sleep(0.05)


async def header_of_any_name(cast: Cast) -> None:
    row, key = cast.gateway.make_key("by their header")
    await accepted(cast, key, header="x-their-key")
    async with cast.client(**{"x-their-key": key}) as client:
        answer = await client.post("/api/generate", json={"model": "llama3", "prompt": "Hi"})
    assert (await cast.gateway.record(answer.headers["x-request-id"])).api_key_id == row.pk


async def change_acts(cast: Cast) -> None:
    row, key = cast.gateway.make_key("short-lived")
    await accepted(cast, key)
    row.revoke()
    async with cast.client(authorization=key) as client, asyncio.timeout(20):
        while (await client.get("/api/tags")).status_code != 401:
            await asyncio.sleep(0.05)


async def allowed_addresses(cast: Cast) -> None:
    await command("create_tenant elsewhere", says="elsewhere")(cast)
    await command("add_ip_rule 198.51.100.0/24 allow --tenant elsewhere", says="Added")(cast)
    _, key = cast.gateway.make_key("elsewhere", tenant="elsewhere")
    statuses = {}
    async with asyncio.timeout(20):
        while statuses != {"198.51.100.7": 200, "192.0.2.7": 401}:
            for address in ("198.51.100.7", "192.0.2.7"):
                async with cast.client(**{"authorization": key, "x-forwarded-for": address}) as client:
                    statuses[address] = (await client.get("/api/tags")).status_code


async def their_python_sample(cast: Cast) -> None:
    """The official library with the bare key as the Authorization header, streaming."""
    _, key = cast.gateway.make_key("bare")
    script = (
        "import sys, ollama\n"
        "client = ollama.Client(host=sys.argv[1], headers={'Authorization': sys.argv[2]})\n"
        "said = [{'role': 'user', 'content': 'Hello, how are you today?'}]\n"
        "for chunk in client.chat(model='llama3.1:8b', messages=said, stream=True):\n"
        "    print(chunk.message.content, end='', flush=True)\n"
    )
    await accepted(cast, key)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, cast.gateway.url, key],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 10


async def two_servers_share(cast: Cast) -> None:
    async with FakeOllama(models=["shared-model"]) as one, FakeOllama(models=["shared-model"]) as two:
        for number, server in enumerate((one, two)):
            cast.gateway.make_backend(server.url, f"share-{number}", slots=1)
        async with cast.client() as client, asyncio.timeout(30):
            body = {"model": "shared-model", "prompt": "x", "stream": False}
            while not (calls(one) and calls(two)):
                await asyncio.gather(*(client.post("/api/generate", json=body) for _ in range(4)))
        cast.gateway.rows(Backend).filter(name__startswith="share-").delete()


async def run_phi4(cast: Cast) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway_site.cli", "run", "phi4", "Hello"],
        cwd=ROOT, env={**cast.gateway.env, "OLLAMA_GATEWAY_URL": cast.gateway.url},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 10


async def console_script_serves(cast: Cast) -> None:
    entry = (ROOT / "pyproject.toml").read_text()
    assert 'ollama-gateway = "gateway_site.cli:main"' in entry
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway_site.cli", "serve", "--help"],
        cwd=ROOT, env=cast.gateway.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Runs the gateway until SIGTERM or Ctrl-C" in " ".join(done.stdout.split())


async def moving_is_explained(cast: Cast) -> None:
    assert "move Ollama (OLLAMA_HOST=127.0.0.1:11435 ollama serve)" in what_to_do("ollama (pid 1)", 11434)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "manage.py", "serve", "--port", str(cast.gateway.port)],
        cwd=ROOT, env=cast.gateway.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(rf"Port {cast.gateway.port} on 127\.0\.0\.1 is in use by .+ \(pid \d+\)", done.stderr)


def openai(path: str, body: dict[str, Any], *, model: str, text: Callable[[Any], str]) -> Check:
    """As the OpenAI library sends it to base_url …/v1 with api_key="not-needed"."""

    async def ask(cast: Cast) -> None:
        async with cast.client(cast.by_variables, authorization="Bearer not-needed") as client:
            answer = await client.post(f"/v1{path}", json={"model": model, **body})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == model
            assert text(answer.json()["choices"][0])
            assert answer.json()["usage"]["completion_tokens"] > 0
            answer = await client.post(f"/v1{path}", json={"model": model, "stream": True, **body})
            assert answer.text.endswith("data: [DONE]\n\n")

    return ask


async def openai_models(cast: Cast) -> None:
    async with cast.client(cast.by_variables, authorization="Bearer not-needed") as client:
        answer = await client.get("/v1/models")
    assert answer.status_code == 200
    assert "phi4:latest" in {model["id"] for model in answer.json()["data"]}


def make_target(name: str) -> Check:
    async def check(cast: Cast) -> None:
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

    return check


async def same_call_twice(cast: Cast) -> None:
    async with cast.client() as client:
        body = {"model": "llama3.2:1b", "prompt": "What is 2+2?", "stream": False, "options": {"temperature": 0}}
        for wanted in ("MISS", "HIT"):
            assert (await client.post("/api/generate", json=body)).headers.get("x-cache") == wanted


async def identical_calls_share(cast: Cast) -> None:
    """Eight at once are one for the server; of three embeddings of which two are known, one goes there."""
    cast.fake.faults(path="/api/generate", model="phi4", slow_first_byte=0.5, times=1)
    before = len(calls(cast.fake))
    async with cast.client() as client:
        body = {"model": "phi4", "prompt": "What is 3+3?", "stream": False, "options": {"seed": 1}}
        answers = await asyncio.gather(*(client.post("/api/generate", json=body) for _ in range(8)))
        assert len({answer.text for answer in answers}) == 1
        assert sorted({answer.headers["x-cache"] for answer in answers}) == ["COALESCED", "MISS"]
        assert len(calls(cast.fake)) == before + 1
        for texts in (["one", "two"], ["one", "two", "three"]):
            embedded = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": texts})
            assert len(embedded.json()["embeddings"]) == len(texts)
    assert calls(cast.fake)[-1].json["input"] == ["three"]


async def config_paths(cast: Cast) -> None:
    """On the gateway that was started with the file, with a token of a superuser's; without one they open nothing."""
    gateway = cast.by_file
    token = ""
    for line in ("create_admin keeper --password keeper-of-keys", "create_token --user keeper --name t --scopes all"):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "manage.py", *shlex.split(line)],
            cwd=ROOT, env=gateway.env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        token = done.stdout.strip()
    async with cast.client(gateway) as client:
        for path in ("/config/reload", "/config/new-key"):
            assert (await client.get(path)).status_code == 401, path
    async with cast.client(gateway, authorization=token) as client:
        key = (await client.get("/config/new-key")).json()["key"]
        said = (await client.get("/config/reload")).json()
    assert said["reloaded"]
    assert "apiKeys" in said["fields"]
    async with cast.client(gateway, authorization=key) as client, asyncio.timeout(20):
        while (await client.get("/api/tags")).status_code != 200:
            await asyncio.sleep(0.05)


async def container_takes_the_file(cast: Cast) -> None:
    """The image serves on 8080 and leaves the file where they mount it; tests/deploy runs what is in the image."""
    said = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(
        r'^EXPOSE 8080$.*^ENTRYPOINT \["ollama-gateway"\]\nCMD \["serve", ', said, re.MULTILINE | re.DOTALL
    )
    assert "CONFIG_FILE" not in said
    assert str(settings_module._MOUNTED) == "/config.json"
    await keys_of_the_file(cast)


async def speaks_tls(cast: Cast) -> None:
    authority, port = trustme.CA(), free_port()
    issued = authority.issue_cert("localhost")
    certificate, key = cast.gateway.directory / "chain.pem", cast.gateway.directory / "key.pem"
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    serve = ["manage.py", "serve", "--port", str(port), "--tls-cert", str(certificate), "--tls-key", str(key)]
    with (cast.gateway.directory / "tls.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *serve], cwd=ROOT, env=cast.gateway.env, stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(verify=trust, trust_env=False) as client, asyncio.timeout(60):
            while process.poll() is None:
                try:
                    answer = await client.get(f"https://localhost:{port}/")
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                else:
                    break
        assert answer.text == "Ollama is running"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


THEIR_KEY = "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI="


def config_json(server: str, port: int) -> dict[str, Any]:
    """Theirs, with what tells whether it is taken."""
    return {
        "ollamaAddresses": [server],
        "gatewayAddress": f"localhost:{port}",
        "logging": True,
        "authHeaderName": "X-Their-Header",
        "apiKeys": [THEIR_KEY],
        "rateLimit": {"maxRequests": 25, "timeWindowSeconds": 30, "enabled": True},
        "security": {"allowIps": ["127.0.0.0/8", "198.51.100.0/24"], "denyIps": ["198.51.100.7"]},
        "metrics": {"enabled": True, "endpoint": "/numbers", "namespace": "theirs"},
    }


def by_file(cast: Cast, address: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
    """A client of the gateway that was started with their file, at an address."""
    return cast.client(cast.by_file, **{"x-forwarded-for": address, **headers})


async def server_of_the_file(cast: Cast) -> None:
    assert cast.by_file.rows(Backend).get().url == cast.fake.url
    async with by_file(cast, authorization=THEIR_KEY) as client:
        answer = await client.post("/api/generate", json={"model": "llama3", "prompt": "Hi", "stream": False})
    assert answer.status_code == 200, answer.text
    assert cast.by_file.url.endswith(str(cast.by_file.port))


async def address_of_the_file(cast: Cast) -> None:
    async with by_file(cast) as client:
        assert (await client.get(f"http://localhost:{cast.by_file.port}/")).text == "Ollama is running"


async def logged_by_the_file(cast: Cast) -> None:
    async with by_file(cast, authorization=THEIR_KEY) as client:
        answer = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": "x"})
    async with asyncio.timeout(20):
        while answer.headers["x-request-id"] not in cast.by_file.log():
            await asyncio.sleep(0.05)
    assert THEIR_KEY[:20] not in cast.by_file.log()


async def header_of_the_file(cast: Cast) -> None:
    async with by_file(cast, **{"x-their-header": THEIR_KEY}) as client:
        assert (await client.get("/api/tags")).status_code == 200


async def keys_of_the_file(cast: Cast) -> None:
    for sent in (THEIR_KEY, THEIR_KEY.rstrip("="), f"Bearer {THEIR_KEY}"):
        async with by_file(cast, authorization=sent) as client:
            assert (await client.get("/api/tags")).status_code == 200, sent
    async with by_file(cast, authorization=THEIR_KEY[1:]) as client:
        assert (await client.get("/api/tags")).status_code == 401
    assert cast.by_file.rows(ApiKey).get(imported=True).name == "config.json 1"


async def limit_of_the_file(cast: Cast) -> None:
    """25 requests in 30 s for each address, and not for the others."""
    statuses = []
    async with by_file(cast, "198.51.100.1", authorization=THEIR_KEY) as client:
        for _ in range(26):
            answer = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": "x"})
            statuses.append(answer.status_code)
    assert statuses == [200] * 25 + [429]
    async with by_file(cast, "198.51.100.2", authorization=THEIR_KEY) as client:
        answer = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": "x"})
    assert answer.status_code == 200


def addresses_of_the_file(address: str, status: int) -> Check:
    async def ask(cast: Cast) -> None:
        async with by_file(cast, address, authorization=THEIR_KEY) as client:
            assert (await client.get("/api/tags")).status_code == status

    return ask


async def metrics_of_the_file(cast: Cast) -> None:
    async with by_file(cast) as client:
        assert "# TYPE" in (await client.get("/numbers")).text
        assert (await client.get("/metrics")).status_code == 404


async def namespace_of_the_file(cast: Cast) -> None:
    async with by_file(cast) as client:
        assert "# TYPE theirs_requests_total counter" in (await client.get("/numbers")).text


async def again_by_command(cast: Cast) -> None:
    """What the start imported is there already; by the command it is the same."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "manage.py", "import_config", cast.by_file.env["CONFIG_FILE"], "--json"],
        cwd=ROOT, env=cast.by_file.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["changed"] is False
    assert len(said["fields"]) == 11


GENERATE = '-H "Content-Type: application/json" -d'
TABLE = [
    # A
    Entry(A, "git clone …, cargo build --release, cargo run", "`make demo`, `manage.py serve`",
          differs="this is Python: it is installed, not compiled"),
    Entry(A, "http://localhost:8080", "`serve` listens on 8080", default_port),
    Entry(A, "curl -X POST http://localhost:8080/api/generate (llama3.2:1b, stream false)",
          "the same, without a key after `serve --open`",
          curl(f"""curl -X POST http://localhost:8080/api/generate {GENERATE} """
               """'{"model": "llama3.2:1b", "prompt": "What is 2+2?", "stream": false}'""")),
    Entry(A, "curl http://localhost:8080/metrics", "the same, from this machine and METRICS_NETWORKS",
          curl("curl http://localhost:8080/metrics")),
    *(Entry(A, name, "a metric of this name", metric(name, kind)) for name, kind in (
        ("ollama_requests_total", "counter"), ("ollama_cache_hits_total", "counter"),
        ("ollama_cache_misses_total", "counter"), ("ollama_cache_size", "gauge"),
        ("ollama_request_latency_seconds", "histogram"))),
    Entry(A, "the same call twice is answered from the cache", "with `CACHE_POLICY=deterministic`",
          same_call_twice),
    Entry(A, "OLLAMA_URL (http://localhost:11434)", "owns the backend `default`", upstream_by_flag),
    Entry(A, "CACHE_TTL_SECONDS (3600)", "the same; “Cache settings” in the admin go first",
          starts_with("CACHE_TTL_SECONDS", "3600")),
    Entry(A, "--port", "the same", command("serve --help", says="--port PORT")),
    Entry(A, "--cache-ttl", "the same", command("serve --help", says="--cache-ttl")),
    Entry(A, "request batching",
          "with `CACHE_POLICY`: identical calls in flight share one, embeddings are kept by input",
          identical_calls_share),
    Entry(A, "load balancing over several servers", "as many backends as you add", two_servers_share),
    Entry(A, "streaming", "everything streams",
          curl(f"""curl -N http://localhost:8080/api/generate {GENERATE} """
               """'{"model":"llama3.2:1b", "prompt":"Hi", "stream":true}'""")),
    Entry(A, "Grafana dashboard", "four, in `deploy/grafana`", comes_with_it("deploy/grafana/dashboards/*.json")),
    # B
    Entry(B, "config.json", "`CONFIG_FILE`, by default `/config.json`: `serve` takes it over; or `import_config FILE`",
          again_by_command),
    Entry(B, "config.json: ollamaAddresses", "taken over; `add_backend`", server_of_the_file),
    Entry(B, "config.json: gatewayAddress", "the default; `serve --listen` and `PORT` go first", address_of_the_file),
    Entry(B, "config.json: logging", "the default; `ACCESS_LOG` and `LOG_LEVEL` go first", logged_by_the_file),
    Entry(B, "config.json: authHeaderName", "the default; `AUTH_HEADER` goes first", header_of_the_file),
    Entry(B, "a header of any name", "`AUTH_HEADER`", header_of_any_name),
    Entry(B, "config.json: apiKeys, with or without their padding", "taken over, in their form; `create_key`",
          keys_of_the_file),
    Entry(B, "config.json: rateLimit.maxRequests, timeWindowSeconds (25 in 30 s per client address)",
          "taken over; `set_limit --address --metric requests --window 30 --amount 25`", limit_of_the_file),
    Entry(B, "a limit per client address", "`set_limit --address`", per_client_address),
    Entry(B, "config.json: rateLimit.enabled", "not enabled: the limit only counts (`set_limit … --shadow`)",
          command("set_limit --address --metric requests --window 31 --amount 25 --model x --shadow", says="")),
    Entry(B, "config.json: security.allowIps", "taken over; `add_ip_rule CIDR allow`",
          addresses_of_the_file("192.0.2.7", 403)),
    Entry(B, "addresses that are allowed", "`add_ip_rule CIDR allow`, also for a tenant or key", allowed_addresses),
    Entry(B, "config.json: security.denyIps", "taken over; `add_ip_rule CIDR deny`",
          addresses_of_the_file("198.51.100.7", 403)),
    Entry(B, "addresses that are denied", "`add_ip_rule CIDR deny`", denied_addresses),
    Entry(B, "config.json: metrics.enabled", "the default; `METRICS_ENABLED` goes first",
          starts_with("METRICS_ENABLED", "False")),
    Entry(B, "config.json: metrics.endpoint (/metrics)", "the default; `METRICS_PATH` goes first", metrics_of_the_file),
    Entry(B, "config.json: metrics.namespace (gateway)", "the default; `METRICS_NAMESPACE` goes first",
          namespace_of_the_file),
    Entry(B, "docker run -v …/config.json:/config.json -p 8080:8080", "the same, of an image from `deploy/Dockerfile`",
          container_takes_the_file),
    Entry(B, "everything under / is forwarded",
          "the routes that are known; superusers add others as pass-through routes",
          found("/api/nothing", status=404),
          differs="routes that are not known are refused: a newer Ollama's could do anything"),
    Entry(B, "round robin", "the server with a free slot that has the model",
          differs="turns ignore which server is busy and which has the model loaded"),
    Entry(B, "GET /config/reload, GET /config/new-key", "the same, for administrators' tokens only", config_paths),
    Entry(B, "a new key", "`create_key --tenant T --name N`",
          command("create_key --tenant default --name another", says="ogw_")),
    Entry(B, "reload without a restart", "every change acts within a second, by itself", change_acts),
    Entry(B, "GET /metrics", "the same", found("/metrics", holds="# TYPE")),
    *(Entry(B, name, "a metric of this name", metric(name, kind, *labels)) for name, kind, labels in (
        ("gateway_requests_total", "counter", ("method", "endpoint", "status")),
        ("gateway_requests_duration_seconds", "histogram", ("method", "endpoint")),
        ("gateway_requests_by_ip_total", "counter", ("endpoint", "status")),
        ("gateway_requests_success_total", "counter", ("method", "endpoint")),
        ("gateway_requests_failure_total", "counter", ("method", "endpoint")),
        ("gateway_apikeys_total", "gauge", ()), ("gateway_api_keys_total", "gauge", ()),
        ("gateway_ollama_servers_total", "gauge", ()))),
    Entry(B, "ollama.Client(host=…, headers={'Authorization': the bare key}).chat(stream=True)", "the same",
          their_python_sample),
    # C
    Entry(C, "go mod tidy, go build, ./ollama-proxy", "`manage.py serve`", differs="this is Python"),
    Entry(C, "http://localhost:8080 in front of http://127.0.0.1:11434", "the defaults of `serve`", default_port),
    Entry(C, "OLLAMA_UPSTREAM", "owns the backend `default`", upstream_by_flag),
    Entry(C, '-listen ":9000" -upstream "http://ollama:11434"', "the same, also with two dashes", upstream_by_flag),
    Entry(C, "curl -s http://localhost:8080/api/generate (codellama:34b)", "the same",
          curl(f"""curl -s http://localhost:8080/api/generate {GENERATE} """
               """'{"model": "codellama:34b", "prompt": "Generate Hello world on python", "stream": false}'""")),
    Entry(C, "curl -s … (llama3, stream false)", "the same",
          curl(f"""curl -s http://localhost:8080/api/generate {GENERATE} """
               """'{"model":"llama3", "prompt":"Hi", "stream":false}'""")),
    Entry(C, "curl -N … (llama3, stream true)", "the same, with counts at the end of streams, too",
          curl(f"""curl -N http://localhost:8080/api/generate {GENERATE} """
               """'{"model":"llama3", "prompt":"Hi", "stream":true}'""")),
    *(Entry(C, name, "a metric of this name", metric(name, kind, *labels)) for name, kind, labels in (
        ("ollama_proxy_requests_total", "counter", ("endpoint", "model", "status", "stream")),
        ("ollama_proxy_request_duration_seconds", "histogram", ("endpoint", "model", "stream")),
        ("ollama_proxy_prompt_tokens_total", "counter", ("endpoint", "model")),
        ("ollama_proxy_completion_tokens_total", "counter", ("endpoint", "model")),
        ("ollama_proxy_request_bytes_in_total", "counter", ("endpoint", "model")),
        ("ollama_proxy_response_bytes_out_total", "counter", ("endpoint", "model")))),
    *(Entry(C, line, "the same", sample(line)) for line in (
        'ollama_proxy_requests_total{endpoint="/api/generate",model="codellama:34b",status="200",stream="false"} 5',
        "ollama_proxy_request_duration_seconds_bucket"
        '{endpoint="/api/generate",model="llama3",stream="true",le="0.5"} 2',
        'ollama_proxy_prompt_tokens_total{endpoint="/api/generate",model="llama3"} 128',
        'ollama_proxy_completion_tokens_total{endpoint="/api/generate",model="llama3"} 256')),
    Entry(C, "bytes in and out", "columns of the record", recorded(bytes_in=positive, bytes_out=positive)),
    Entry(C, "prompt and completion tokens", "columns of the record, of streams too",
          recorded(prompt_tokens=positive, completion_tokens=positive, stream=bool)),
    Entry(C, "rate limiting", "`set_limit`",
          command("set_limit --tenant default --metric requests --window minute --amount 100000", says="100000")),
    Entry(C, "TLS", "`serve --tls-cert --tls-key`", speaks_tls),
    Entry(C, "persistent usage logs", "one record per call", recorded(outcome=lambda outcome: outcome == "ok")),
    Entry(C, "OpenTelemetry tracing", "`OTEL_EXPORTER_OTLP_ENDPOINT`: one trace a call", traced),
    Entry(C, "Grafana dashboard", "four, in `deploy/grafana`", comes_with_it("deploy/grafana/dashboards/*.json")),
    Entry(C, "Docker images", "built from `deploy/Dockerfile`; `deploy/compose.yaml`",
          comes_with_it("deploy/Dockerfile")),
    # D
    Entry(D, "build.bat, go build, one .exe", "`uv tool install`",
          differs="this is Python: one command installs it, but it is more than one file"),
    Entry(D, "ollama-proxy.exe serve", "`ollama-gateway serve`", console_script_serves),
    Entry(D, "ollama-proxy.exe run phi4", "`ollama-gateway run phi4`", run_phi4),
    Entry(D, "install-service.bat", "`ollama-gateway install_service`; on Windows in WSL: `--system windows --print`",
          command("install_service --system windows --print", says="Register-ScheduledTask")),
    Entry(D, "port 11434, Ollama on 11435", "`serve --port 11434` looks for Ollama on 11435", moving_is_explained),
    Entry(D, "http://localhost:11434/metrics", "the same", found("/metrics", holds="# TYPE")),
    *(Entry(D, path, "the same; JSON fields in docs/usage.md", found(path))
      for path in ("/analytics", "/analytics/stats", "/analytics/search", "/test")),
    *(Entry(D, name, "a metric of this name", metric(name, kind)) for name, kind in (
        ("ollama_request_duration_seconds", "histogram"), ("ollama_tokens_generated", "histogram"),
        ("ollama_tokens_per_second", "histogram"), ("ollama_requests_total", "counter"),
        ("ollama_active_requests", "gauge"))),
    Entry(D, "prompts cut at 1,000 characters, previews of answers, kept 7 days",
          "a switch per tenant (off): `keeps_texts`", texts_are_stored),
    Entry(D, "token counts, duration, status code", "columns of the record",
          recorded(completion_tokens=positive, total_us=positive, status=lambda status: status == 200)),
    Entry(D, "client IP and user agent", "columns of the record",
          recorded(client_address=lambda address: address == "127.0.0.1", user_agent="their-app/1.0".__eq__)),
    Entry(D, "a searchable SQLite database in ./ollama_analytics", "SQLite in `DATA_DIR`, searched by "
          "`/analytics/search` and under *Requests*", searched),
    Entry(D, "10–20 MB of memory, start within 100 ms", "`make bench` prints ours",
          differs="Python needs more of both"),
    Entry(D, "“Port Already in Use”", "the message names the process and says what to do", moving_is_explained),
    Entry(D, "“Ollama Not Found”", "Ollama is a server with an address",
          differs="the gateway starts no Ollama; the admin shows which backends answer"),
    # E
    Entry(E, "make build, make run, ./proxy", "`make demo`, `manage.py serve`", differs="there is nothing to build"),
    Entry(E, "OpenAI(api_key=\"not-needed\", base_url=\"http://localhost:11434/v1\"), gpt-3.5-turbo",
          "the same, without a key after `serve --open`; the default chat model answers",
          openai("/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}, model="gpt-3.5-turbo",
                 text=lambda choice: choice["message"]["content"])),
    Entry(E, "/v1/completions", "the same",
          openai("/completions", {"prompt": "Hello"}, model="phi4", text=lambda choice: choice["text"])),
    Entry(E, "/v1/models", "the same", openai_models),
    Entry(E, "OLLAMA_PROXY_PORT", "the same; `PORT` goes first", port_by_variable),
    Entry(E, "OLLAMA_METRICS_PORT (9090)", "the same; `METRICS_PORT` goes first; off by default",
          metrics_on_their_port),
    Entry(E, "OLLAMA_HOST, OLLAMA_PORT", "own the backend `default`", upstream_by_host_and_port),
    Entry(E, "http://localhost:9090/metrics", "with OLLAMA_METRICS_PORT=9090", metrics_on_their_port),
    *(Entry(E, name, "a metric of this name", metric(name, kind, *labels)) for name, kind, labels in (
        ("ollama_proxy_requests_total", "counter", ("method", "endpoint", "model", "status")),
        ("ollama_proxy_request_duration_seconds", "histogram", ()),
        ("ollama_proxy_tokens_per_second", "histogram", ()),
        ("ollama_proxy_time_to_first_token_seconds", "histogram", ()),
        ("ollama_proxy_token_cost_total", "counter", ("currency",)),
        ("ollama_proxy_model_load_duration_seconds", "histogram", ()),
        ("ollama_proxy_generated_tokens_total", "counter", ()), ("ollama_proxy_errors_total", "counter", ()),
        ("ollama_proxy_queue_size", "gauge", ()), ("ollama_proxy_queue_wait_time_seconds", "histogram", ()))),
    Entry(E, "requests by id, user and model", "columns of the record",
          recorded(client_request_id="their-id-1".__eq__, model="llama3:latest".__eq__, key_name="open".__eq__)),
    Entry(E, "latency, time to first token, load time", "columns of the record",
          recorded(total_us=positive, first_token_us=positive, load_us=lambda load: load >= 0)),
    Entry(E, "cost per user and model", "`set_price`, and the cost of each record",
          command("set_price some-model --input 0.15 --output 0.60", says="some-model")),
    Entry(E, "sizes of requests and answers", "columns of the record", recorded(bytes_in=positive, bytes_out=positive)),
    Entry(E, "metrics of the system (CPU, memory, disk I/O)", "of the gateway's machine",
          metric("gateway_host_cpu_seconds_total", "counter", "mode")),
    Entry(E, "GPU, power and temperature of a Mac", "of the gateway's machine, by powermetrics if it runs as root",
          differs="powermetrics tells no temperature, and is for root alone; what may not be asked is absent"),
    Entry(E, "guides for metrics and dashboards", "[metrics.md](metrics.md)", comes_with_it("docs/metrics.md")),
    *(Entry(E, f"make {name}", "the same", make_target(name)) for name in ("test", "fmt", "lint")),
    Entry(E, "export OLLAMA_NUM_PARALLEL=2", "`slots` of the backend: how many calls Ollama runs at a time",
          command("add_backend counted http://192.0.2.1:11434 --slots 2", says="2 slots")),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(make_shared_gateway):
    async with FakeOllama(models=MODELS, slots=8) as fake:
        gateway = make_shared_gateway(
            TRUSTED_PROXIES="127.0.0.0/8", AUTH_HEADER="X-Their-Key", CACHE_POLICY="deterministic"
        )
        # Their own flags, with one dash, on the loopback address; a flag goes before the variable.
        gateway.env["PORT"] = "1"
        gateway.arguments = ["-listen", f"127.0.0.1:{gateway.port}", "-upstream", fake.url, "--open"]
        metrics_port = free_port()
        by_variables = make_shared_gateway(
            OLLAMA_METRICS_PORT=str(metrics_port), OLLAMA_HOST="localhost", OLLAMA_PORT=fake.url.rpartition(":")[2]
        )
        by_variables.env["OLLAMA_PROXY_PORT"] = str(by_variables.port)
        by_variables.arguments = ["--open"]
        with_file = make_shared_gateway(TRUSTED_PROXIES="127.0.0.0/8")
        with_file.env["CONFIG_FILE"] = str(with_file.directory / "config.json")
        Path(with_file.env["CONFIG_FILE"]).write_text(json.dumps(config_json(fake.url, with_file.port)))
        with_file.command = lambda: ["manage.py", "serve"]
        for made in (gateway, by_variables, with_file):
            await asyncio.to_thread(made.start)
        await gateway.until_it_lists(*MODELS)
        await by_variables.until_it_lists(*MODELS)
        await with_file.until_it_lists(*MODELS, key=THEIR_KEY)
        yield Cast(gateway, by_variables, with_file, metrics_port, fake)


def named(entry):
    return f"{entry.who[:40]}: {entry.what[:60]}"


@pytest.mark.parametrize("entry", [entry for entry in TABLE if entry.check], ids=named)
async def test_what_they_promised_is_kept(cast, entry):
    await entry.check(cast)


async def test_every_entry_has_a_verdict():
    for entry in TABLE:
        assert entry.check or entry.differs, entry


def table() -> str:
    lines = []
    for who in (A, B, C, D, E):
        lines += ["", f"## {who}", "", "| there | here | |", "|---|---|---|"]
        for entry in TABLE:
            if entry.who == who:
                what = entry.what.replace("|", "\\|")
                lines.append(f"| `{what}` | {entry.here} | {entry.verdict} |")
    return "\n".join(lines) + "\n\n"


async def test_the_page_for_those_who_switch_is_this_table():
    _, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert begin, f"{PAGE} has lost its mark {BEGIN}"
    assert rest.partition(END)[0] == "\n" + table(), "write_page() writes it anew"


def write_page() -> None:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
