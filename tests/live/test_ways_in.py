"""The ways in with real servers: keys in the path (A6), callers without a key, flags and variables, model names."""

import asyncio
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.models import Backend, DefaultModels, ModelAlias
from tenants.models import ApiKey, IPRule
from tests.live.gateway import ROOT, copied_sqlite
from tests.live.raw import bearer
from tests.live.seen import new_calls, no_calls
from tests.no_tls import NO_TLS
from tests.ports import free_port
from tests.proxy.odd_paths import odd_spellings

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 15.0


def chat(model="llama3.2", **fields):
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False, **fields}


CHAT = json.dumps(chat()).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(ACCESS_LOG="True", AUTH_HEADER="X-Gateway-Auth")
    made.make_backend(shared_fake.url, slots=8)
    made.path_row, made.path_key = made.make_key("in path", may_be_in_path=True)
    _, made.key = made.make_key("ordinary")
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", key=made.key)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


async def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


# 1. A key in the path


async def test_a6_a_key_in_the_path_opens_every_route_as_in_a_header(gateway, fake, raw):
    prefix = f"/k/{gateway.path_key}"
    for method, path, body in (
        *(("HEAD", "/", b""), ("GET", "/", b""), ("GET", "/api/version", b""), ("GET", "/api/tags", b"")),
        *(("HEAD", "/api/tags", b""), ("POST", "/api/show", b'{"model":"llama3.2"}'), ("POST", "/api/chat", CHAT)),
    ):
        by_header = await raw.ask(method, path, bearer(gateway.path_key), body=body)
        by_path = await raw.ask(method, prefix + path, body=body)
        assert by_path.status == by_header.status == 200, (method, path, by_path)
        assert by_path.all("location") == []
        assert len(by_path.body) == pytest.approx(len(by_header.body), abs=50)
    assert (await raw.ask("GET", prefix + "/")).body == b"Ollama is running"
    assert (await raw.ask("POST", prefix + "/api/chat?beta=true", body=CHAT)).status == 200
    # The same key twice is one credential.
    assert (await raw.ask("POST", prefix + "/api/chat", bearer(gateway.path_key), body=CHAT)).status == 200


async def test_a6_every_other_key_in_the_path_gets_the_same_401_in_the_dialect_of_the_rest(gateway, fake, raw):
    revoked, revoked_key = gateway.make_key("revoked", may_be_in_path=True)
    revoked.revoke()
    changed = gateway.path_key[:-1] + ("A" if gateway.path_key[-1] != "A" else "B")
    keys = (gateway.key, revoked_key, changed, "nope", "", gateway.path_key.replace("_", "%5F"), "%6f" + changed[1:])
    texts = set()
    with no_calls(fake):
        for key in keys:
            for method, path in (("POST", "/api/chat"), ("GET", "/api/tags"), ("HEAD", "/"), ("GET", "/")):
                answer = await raw.ask(method, f"/k/{key}{path}", body=CHAT)
                assert answer.status == 401, (key, path, answer)
                assert answer.all("x-gateway-error") == ["invalid_key"]
                if method != "HEAD":
                    texts.add(re.sub("[0-9a-f]{32}", "ID", json.loads(answer.body)["error"]))
        assert len(texts) == 1, texts
        for header in (bearer(gateway.key), (b"X-Api-Key", b"not-needed"), (b"Authorization", b"Digest x")):
            answer = await raw.ask("POST", f"/k/{gateway.path_key}/api/chat", header, body=CHAT)
            assert (answer.status, answer.all("x-gateway-error")) == (401, ["invalid_key"])


async def test_a6_the_dialect_of_a_refusal_is_that_of_the_path_behind_the_key(gateway, raw):
    shapes = {"/api/chat": str, "/v1/chat/completions": dict, "/v1/messages": dict}
    for path, shape in shapes.items():
        for status, prefix in ((401, "/k/nope"), (None, "")):
            answer = await raw.ask("POST", prefix + path, body=b"{}")
            error = json.loads(answer.body)["error"]
            assert isinstance(error, shape), (path, answer)
            if answer.status == 401 and path == "/v1/messages":
                assert json.loads(answer.body)["type"] == "error"
            assert status is None or answer.status in (401, 404)


async def test_a6_p3_no_other_spelling_behind_a_key_is_served(gateway, fake, raw):
    prefix = b"/k/" + gateway.path_key.encode()
    odd = [prefix + spelling for path in ("/api/chat", "/api/delete") for spelling in odd_spellings(path)]
    key = gateway.path_key
    odd += [
        f"/k/{key}",
        f"/k/{key}/k/{key}/api/chat",
        f"/k//{key}/api/chat",
        f"/K/{key}/api/chat",
        f"//k/{key}/api/chat",
    ]
    odd += [f"/k/{key}/../api/chat", f"/%6b/{key}/api/chat", f"/k/{key}%2fapi/chat", f"/k/./{key}/api/chat"]
    with no_calls(fake):
        for target in odd:
            answer = await raw.ask("POST", target, body=CHAT)
            assert answer.status in (400, 401, 404), (target, answer)


async def test_a6_l7_a_key_in_the_path_is_in_no_log_no_error_and_no_header_of_a_backend(gateway, fake, raw):
    secret = gateway.path_key.split("_")[2].encode()
    foreign = b"Zm9yZWlnbi1pbXBvcnRlZC1rZXktY2FuYXJ5"
    with new_calls(fake) as seen:
        for target in ("/api/chat", "/api/nothing", "/api/chat/", "/v1/chat/completions", "/api/show", "/"):
            for body in (CHAT, b"{", b'{"model":"nope"}', b""):
                for key in (gateway.path_key.encode(), foreign):
                    for prefix in (b"/k/", b"/K/", b"/x/k/"):
                        answer = await raw.ask("POST", prefix + key + target.encode(), body=body)
                        assert secret not in answer.body + repr(answer.headers).encode()
        fake.faults(times=1, path="/api/chat", model="llama3.2", status=500, error="it broke")
        assert (await raw.ask("POST", f"/k/{gateway.path_key}/api/chat", body=CHAT)).status == 502
    assert seen
    for call in seen:
        assert secret not in repr((call.target, call.headers, call.body)).encode()
    async with asyncio.timeout(20):
        while f'"key":"{gateway.path_row.prefix}"' not in (log := gateway.log()):
            await asyncio.sleep(0.05)
    assert f"/ogw_{gateway.path_row.prefix}_…" in log  # Django's "Not Found", cut short
    assert secret.decode() not in log
    assert foreign.decode() not in log
    records = gateway.records(api_key_id=gateway.path_row.pk)
    assert {record.endpoint for record in records} == {"/api/chat", "/api/show", "/v1/chat/completions"}


async def test_a7_a_key_that_loses_the_right_to_the_path_is_refused_within_a_second(gateway, fake, raw):
    row, key = gateway.make_key("loses", may_be_in_path=True)
    path = f"/k/{key}/api/tags"

    async def answers(status):
        return (await raw.ask("GET", path)).status == status

    await until(lambda: answers(200))
    async with gateway.client() as client:
        # Ends only when it is cut.
        fake.faults(times=1, path="/api/chat", model="qwen3:8b", hang_after_chunks=2)
        async with client.stream("POST", f"/k/{key}/api/chat", json=chat("qwen3:8b", stream=True)) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            began = time.monotonic()
            gateway.rows(ApiKey).filter(pk=row.pk).update(may_be_in_path=False)
            rest = [line async for line in lines]
    print(f"cut after {time.monotonic() - began:.2f} s")
    assert "withdrawn" in rest[-1]
    assert await answers(401)
    assert (await raw.ask("GET", "/api/tags", bearer(key))).status == 200


def _ollama_of(gateway):
    return {"OLLAMA_HOST": f"{gateway.url}/k/{gateway.path_key}", "PATH": os.environ["PATH"], "HOME": "/nonexistent"}


async def test_the_official_client_keeps_the_prefix(gateway, fake):
    """The CLI itself, where it is installed; else the official library, which joins paths as it does."""
    script = (
        "import ollama; c = ollama.Client(); print(c.list().models[0].model); print(c.show('llama3.2').capabilities)"
    )
    command = ["ollama", "list"] if shutil.which("ollama") else [sys.executable, "-c", script]
    done = await asyncio.to_thread(
        subprocess.run, command, env=_ollama_of(gateway), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "nomic-embed-text" in done.stdout
    assert shutil.which("ollama") or "completion" in done.stdout


# 2. Without a key


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_gateway(make_shared_gateway, shared_fake):
    """Started as `serve --open --upstream …` on an empty database."""
    made = make_shared_gateway()
    made.arguments = ["--open", "--upstream", shared_fake.url]
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2")


FOREIGN_CREDENTIALS = [
    {},
    {"Authorization": "Bearer not-needed"},
    {"Authorization": "not-needed"},
    {"Authorization": "Bearer"},
    {"Authorization": "Basic " + base64.b64encode(b"user:password").decode()},
    {"Authorization": "Basic not base64"},
    {"Authorization": "Digest x=y"},
    {"Authorization": "AAAAC3NzaC1lZDI1NTE5AAAAI:c2lnbmF0dXJl"},  # the CLI's own signature
    {"X-Api-Key": "sk-ant-not-needed"},
    {"Authorization": "Bearer ollama", "X-Api-Key": "lm-studio"},
]


@pytest.mark.parametrize("headers", FOREIGN_CREDENTIALS, ids=str)
async def test_in_an_open_network_a_credential_that_is_not_ours_counts_as_none(open_gateway, fake, headers):
    async with open_gateway.client() as client:
        answer = await client.post("/api/chat", json=chat(), headers=headers)
    assert answer.status_code == 200, answer.text
    record = await open_gateway.record(answer.headers["x-request-id"])
    assert (record.tenant_name, record.key_name) == ("default", "open")


async def test_a9_a_key_of_ours_is_judged_also_in_an_open_network(open_gateway, fake):
    row, key = open_gateway.make_key("own")
    gone, revoked = open_gateway.make_key("gone")
    gone.revoke()

    async def known():
        async with open_gateway.client(key) as client:
            return (await client.get("/api/tags")).status_code == 200

    await until(known)
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {key}", "x-api-key": "not-needed"}):
        async with open_gateway.client() as client:
            answer = await client.post("/api/chat", json=chat(), headers=headers)
        assert (await open_gateway.record(answer.headers["x-request-id"])).api_key_id == row.pk
    with no_calls(fake):
        async with open_gateway.client(revoked) as client:
            assert (await client.post("/api/chat", json=chat())).status_code == 401
        async with open_gateway.client(key) as client:
            other = {"x-api-key": open_gateway.make_key("second")[1]}
            assert (await client.post("/api/chat", json=chat(), headers=other)).status_code == 401


async def test_open_says_so_and_opens_nothing_but_loopback(open_gateway):
    assert "Open: everybody on this machine may call without a key." in open_gateway.log()
    rules = open_gateway.rows(IPRule)
    assert {(rule.cidr, rule.action, rule.acts_as.name) for rule in rules.select_related("acts_as")} == {
        ("127.0.0.0/8", "allow", "open"),
        ("::1/128", "allow", "open"),
    }


async def test_a7_a_call_let_in_by_a_rule_is_cut_when_the_rule_goes(open_gateway, fake):
    fake.faults(times=1, path="/api/chat", model="qwen3:8b", hang_after_chunks=2)
    async with (
        open_gateway.client() as client,
        client.stream("POST", "/api/chat", json=chat("qwen3:8b", stream=True)) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        rules = list(open_gateway.rows(IPRule))
        open_gateway.rows(IPRule).all().delete()
        assert "withdrawn" in [line async for line in lines][-1]
    open_gateway.rows(IPRule).bulk_create(rules)

    async def open_again():
        async with open_gateway.client() as client:
            return (await client.get("/api/tags")).status_code == 200

    await until(open_again)


# 3 and 4. Flags, variables, the backend of the environment


async def started(make_gateway, *arguments, database_url="", **env):
    made = make_gateway(database_url=database_url, **env)
    made.arguments = list(arguments)
    if "PORT" in env or "OLLAMA_PROXY_PORT" in env:
        made.port = int(env.get("PORT") or env["OLLAMA_PROXY_PORT"])
    made.url = f"http://127.0.0.1:{made.port}"
    return await asyncio.to_thread(made.start)


def serve(*arguments, **given):
    """(exit code, stderr) of a `serve` that is expected to end by itself."""
    done = served(*arguments, **given)
    return done.returncode, done.stderr


def served(*arguments, directory, template, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    database = copied_sqlite(template, directory / "gateway.sqlite3")
    return subprocess.run(
        [sys.executable, "manage.py", "serve", *arguments],
        cwd=ROOT,
        env={**clean, "DATA_DIR": str(directory), "DATABASE_URL": database, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_upstream_owns_the_backend_default_and_gives_it_back(make_gateway, fake):
    """One database, several starts: flag, variable, none."""
    first = await started(make_gateway, "--upstream", fake.url, OLLAMA_HOST="192.0.2.1")
    row = first.rows(Backend).get()
    assert (row.name, row.url, row.set_by_environment) == ("default", fake.url, True)
    assert first.rows(ModelAlias).count() == 3
    first.rows(ModelAlias).filter(pattern="claude-*").delete()
    await asyncio.to_thread(first.stop)

    async with FakeOllama(models=["phi4"]) as other:
        port = other.url.rpartition(":")[2]
        second = await started(
            make_gateway,
            database_url=first.database_url,
            OLLAMA_HOST="0.0.0.0",
            OLLAMA_PORT=port,
            PORT=str(free_port()),
        )
        row = second.rows(Backend).get()
        assert (row.url, row.set_by_environment) == (f"http://127.0.0.1:{port}", True)
        assert set(second.rows(ModelAlias).values_list("pattern", flat=True)) == {"gpt-*", "text-embedding-*"}
        await asyncio.to_thread(second.stop)

    third = await started(make_gateway, database_url=first.database_url, OLLAMA_PROXY_PORT=str(free_port()))
    row = third.rows(Backend).get()
    assert (row.url, row.set_by_environment) == (f"http://127.0.0.1:{port}", False)


async def test_an_empty_installation_begins_with_the_ollama_of_this_machine(make_gateway):
    port = str(free_port())
    made = await started(make_gateway, "--listen", f":{port}", PORT=port)
    assert list(made.rows(Backend).values_list("name", "url", "set_by_environment")) == [
        ("default", "http://127.0.0.1:11434", False)
    ]
    assert {(alias.pattern, alias.model) for alias in made.rows(ModelAlias)} == {
        ("gpt-*", "@chat"),
        ("claude-*", "@chat"),
        ("text-embedding-*", "@embedding"),
    }
    # :PORT is all addresses.
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    assert f"00000000:{int(port):04X}" in listening
    await asyncio.to_thread(made.stop)
    made.rows(Backend).update(archived_at=made.rows(Backend).get().created_at)
    await asyncio.to_thread(made.start)
    assert made.rows(Backend).get().archived_at is not None  # what was deleted does not come back


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (
            ["--upstream", "http://127.0.0.1:{port}", "--port", "{port}"],
            {},
            "--upstream leads to http://127.0.0.1:{port}",
        ),
        (["--listen", ":{port}"], {"OLLAMA_HOST": "0.0.0.0:{port}"}, "OLLAMA_HOST leads to http://127.0.0.1:{port}"),
        (["--port", "{port}"], {"OLLAMA_PORT": "{port}"}, "OLLAMA_PORT leads to http://127.0.0.1:{port}"),
        (["--upstream", "ftp://x"], {}, "--upstream='ftp://x': Begin with http:// or https://"),
        ([], {"OLLAMA_URL": "http://169.254.169.254"}, "link-local, metadata and multicast addresses are refused"),
        (["--port", "{port}"], {"METRICS_PORT": "{port}"}, "METRICS_PORT is the gateway's own port"),
        (["--listen", "9000"], {}, "write e.g. 0.0.0.0:9000, or :9000 for all addresses"),
        (["--cache-ttl", "0"], {}, "use a whole number of seconds, 1 or more"),
        ([], {"CACHE_TTL_SECONDS": "an hour"}, "CACHE_TTL_SECONDS='an hour': use a whole number"),
        ([], {"CACHE_POLICY": "some"}, "CACHE_POLICY='some': use off, deterministic or all"),
        ([], {"METRICS_PATH": "/api/metrics"}, "METRICS_PATH='/api/metrics'"),
        ([], {"METRICS_NAMESPACE": "a-b"}, "METRICS_NAMESPACE='a-b'"),
        ([], {"PORT": "99999"}, "PORT=99999: use a port from 0 to 65535"),
        ([], {"CORS_ORIGINS": "example.com"}, "'example.com' is no web origin"),
        ([], {"PORT_FILE": "/nowhere"}, "PORT_FILE='/nowhere': No such file or directory"),
    ],
)
async def test_what_cannot_be_is_one_clear_line_at_the_start(tmp_path, sqlite_template, arguments, env, said):
    port = str(free_port())
    arguments = [argument.format(port=port) for argument in arguments]
    env = {name: value.format(port=port) for name, value in env.items()}
    code, stderr = await asyncio.to_thread(serve, *arguments, directory=tmp_path, template=sqlite_template, **env)
    assert code in (1, 2), stderr
    assert said.format(port=port) in stderr.splitlines()[-1]


async def test_n11_the_hint_says_how_to_move_ollama(tmp_path, sqlite_template):
    port = str(free_port())
    code, stderr = await asyncio.to_thread(
        serve, "--port", port, directory=tmp_path, template=sqlite_template, OLLAMA_UPSTREAM=f"http://localhost:{port}"
    )
    assert code == 1
    assert "which is this gateway itself. Move Ollama to another port (OLLAMA_HOST=127.0.0.1:11435" in stderr
    assert "--upstream http://127.0.0.1:11435" in stderr


async def test_l1_a_busy_port_names_its_process_and_says_what_to_do(tmp_path, sqlite_template):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = await asyncio.to_thread(served, "--port", str(port), directory=tmp_path, template=sqlite_template)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.match(rf"Port {port} on 127\.0\.0\.1 is in use by .+ \(pid {os.getpid()}\)\. ", line), done.stderr
    assert "choose another port with --port" in line
    # The link to the first account would lead to whoever has the port, and a gateway there has its own.
    assert done.stdout == ""


async def test_metrics_move_to_a_path_and_a_port_of_their_own(make_gateway, fake, tmp_path):
    metrics_port = free_port()
    (tmp_path / "path").write_text("/inner/metrics\n")
    made = await started(
        make_gateway,
        *("--upstream", fake.url, "--cache-ttl", "60"),
        METRICS_PORT=str(metrics_port),
        METRICS_PATH_FILE=str(tmp_path / "path"),
    )
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
        own = f"http://127.0.0.1:{metrics_port}"
        answer = await client.get(f"{own}/inner/metrics")
        assert answer.status_code == 200
        assert "gateway_calls_in_flight" in answer.text
        assert (await client.get(f"{own}/livez")).status_code == 200
        for path in ("/", "/api/tags", "/admin/", "/metrics", "/k/x/api/tags"):
            assert (await client.get(own + path)).status_code == 404, path
        for path in ("/metrics", "/inner/metrics"):
            assert (await client.get(made.url + path)).status_code == 404, path


async def test_the_header_of_the_key_has_any_name(gateway, raw):
    for header in (b"X-Gateway-Auth", b"Authorization"):
        assert (await raw.ask("GET", "/api/tags", (header, gateway.key.encode()))).status == 200


# 5. Names of other services' models


async def answered_by(gateway, fake, name, path="/api/chat", key=None, **body):
    """The model that the backend was asked for, or the status and text of the refusal."""
    body = body or chat(name)
    with new_calls(fake) as seen:
        async with gateway.client(key or gateway.key) as client:
            answer = await client.post(path, json={**body, "model": name})
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]
    assert answer.json()["model"] == name  # as it was asked for
    return json.loads(seen[-1].body)["model"]


async def test_names_of_other_services_stand_for_the_default_models(gateway, fake):
    assert await answered_by(gateway, fake, "gpt-3.5-turbo") == "llama3.2:latest"
    assert await answered_by(gateway, fake, "claude-sonnet-4-5") == "llama3.2:latest"
    assert await answered_by(gateway, fake, "text-embedding-3-small", "/api/embed", input="x") == (
        "nomic-embed-text:latest"
    )
    status, text = await answered_by(gateway, fake, "gpt-oss:20b")
    assert (status, text) == (404, "model 'gpt-oss:20b' not found")


async def test_the_default_chosen_in_the_admin_answers_within_a_second(gateway, fake):
    row = gateway.rows(DefaultModels).get()
    row.chat_model = "qwen3:8b"
    began = time.monotonic()
    row.save()

    async def chosen():
        return await answered_by(gateway, fake, "gpt-4o") == "qwen3:8b"

    await until(chosen)
    print(f"in force after {time.monotonic() - began:.2f} s")
    row.chat_model = "phi4"
    row.save()

    async def missing():
        return await answered_by(gateway, fake, "gpt-4o") == (
            404,
            '"gpt-4o" stands for the default chat model, phi4, which no backend has. Pull it, or choose another in the '
            "admin under Default models.",
        )

    await until(missing)
    row.chat_model = ""
    row.save()

    async def first():
        return await answered_by(gateway, fake, "gpt-4o") == "llama3.2:latest"

    await until(first)


async def test_m1_a_model_that_is_there_beats_a_pattern_and_a_restricted_key_gets_what_it_may(gateway, fake):
    _, key = gateway.make_key("restricted", models_allowed=["qwen3:8b"])
    _, key_of_nothing = gateway.make_key("nothing", models_allowed=["phi4"])

    async def served():
        return await answered_by(gateway, fake, "gpt-4o", key=key) == "qwen3:8b"

    await until(served)
    status, text = await answered_by(gateway, fake, "gpt-4o", key=key_of_nothing)
    assert status == 404
    assert "no backend has one that this key may use" in text
    fake.add_model("gpt-local")
    async with gateway.client(gateway.key) as client:
        await client.get("/api/tags")  # which looks anew
    assert await answered_by(gateway, fake, "gpt-local") == "gpt-local"
    fake.remove_model("gpt-local")


async def test_a_default_model_that_has_just_been_pulled_is_looked_for(make_gateway):
    """Between two probes, half a minute apart: the call itself has the backends asked, and waits for what they say."""
    async with FakeOllama(models=["nomic-embed-text"]) as fake:
        made = make_gateway(PROBE_SECONDS="30")
        made.make_backend(fake.url)
        _, made.key = made.make_key()
        await asyncio.to_thread(made.start)
        await made.until_it_lists("nomic-embed-text", key=made.key)
        status, text = await answered_by(made, fake, "gpt-4o")
        assert status == 404
        assert "no backend has one" in text
        fake.add_model("phi4")
        began = time.monotonic()
        while (answer := await answered_by(made, fake, "gpt-4o")) != "phi4:latest":
            # On a very busy machine a look may take longer than a call waits for it; but it waits.
            assert answer[0] == 404
            assert time.monotonic() - began > 2.5
            began = time.monotonic()


# 7. The client


def run_client(*arguments, stdin="", **env):
    command = [sys.executable, "-m", "gateway_site.cli", "run", *arguments]
    clean = {name: value for name, value in os.environ.items() if name not in ("DATA_DIR", "OLLAMA_API_KEY")}
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **env}, input=stdin, capture_output=True, text=True, timeout=60
    )


async def test_run_takes_address_and_key_from_the_environment_or_a_file_and_streams(gateway, fake, tmp_path):
    home = tmp_path / "home"
    (home / ".config").mkdir(parents=True)
    config = home / ".config" / "ollama-gateway"
    config.write_text(f'url = "{gateway.url}"\nkey = "{gateway.key}"\n')
    account = {"OLLAMA_GATEWAY_URL": gateway.url, "OLLAMA_GATEWAY_KEY": gateway.key, "HOME": str(tmp_path)}
    by_path = {"OLLAMA_GATEWAY_URL": f"{gateway.url}/k/{gateway.path_key}", "HOME": str(tmp_path)}
    for arguments, stdin, env in (
        (["llama3.2", "What is", "2+2?"], "", account),
        (["llama3.2"], "What is 2+2?", {"HOME": str(home)}),
        (["llama3.2", "hi"], "", by_path),
    ):
        with new_calls(fake) as seen:
            done = await asyncio.to_thread(run_client, *arguments, stdin=stdin, **env)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 10
        said = json.loads(seen[-1].body)["messages"][-1]["content"]
        assert said in ("What is 2+2?", "hi")
    for name, env in (
        ("nope", account),
        ("llama3.2", {**account, "OLLAMA_GATEWAY_KEY": "wrong"}),
        ("llama3.2", {**account, "OLLAMA_GATEWAY_URL": "http://127.0.0.1:1"}),
    ):
        done = await asyncio.to_thread(run_client, name, "hi", **env)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert gateway.key not in done.stderr
    assert not (home / ".local").exists()
