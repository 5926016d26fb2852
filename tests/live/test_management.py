"""Model management through the gateway: pull, push, create, copy, delete and blobs, for keys that may manage."""

import asyncio
import hashlib
import json

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.names import parse_name
from proxy.models import ModelAlias
from tenants.models import ApiKey, Limit
from tests.live.seen import new_calls, no_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUCCESS = {"status": "success"}
BLOB = b"weights " * 1000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fakes(shared_fake):
    """`one` has llama3.2, `two` has llama3.2 and mistral."""
    async with FakeOllama(models=["llama3.2", "mistral"], slots=8) as second:
        yield {"one": shared_fake, "two": second}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fakes):
    """In front of one backend."""
    made = make_shared_gateway(CALL_TOTAL_SECONDS="5", BACKEND_FIRST_BYTE_SECONDS="3", BACKEND_GAP_SECONDS="3")
    made.make_backend(fakes["one"].url, "one", slots=8)
    made.row, made.key = made.make_key("manages", may_manage=True)
    _, made.bound_key = made.make_key(
        "bound", may_manage=True, models_allowed=["llama3.2", "mine-*", "reg.example:5000/*"]
    )
    _, made.cloud_key = made.make_key("cloud", may_manage=True, may_use_cloud=True)
    made.rows(ModelAlias).create(pattern="gpt-4o", model="qwen3:8b")
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(make_shared_gateway, fakes):
    """In front of two backends."""
    made = make_shared_gateway()
    for name, server in fakes.items():
        made.make_backend(server.url, name, slots=8)
    _, made.key = made.make_key("manages", may_manage=True)
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(fakes):
    for server in fakes.values():
        server.clear_faults()
        server.release()
    server = fakes["one"]
    server.pullable.clear()
    return server


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


def names(fake):
    return {model.name for model in fake.library.newest_first()}


def lines(answer):
    return [json.loads(line) for line in answer.text.splitlines()]


def pullable(fake, name):
    fake.pullable.add(parse_name(name).key)
    return name


# What passes


@pytest.mark.parametrize("field", ["model", "name"])
async def test_a_pull_tells_its_progress_and_the_model_is_there(gateway, client, fake, field):
    name = pullable(fake, f"pulled-{field}")
    with new_calls(fake) as seen:
        answer = await client.post("/api/pull", json={field: name})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert answer.headers["x-gateway-backend"] == "one"
    said = lines(answer)
    assert (said[0], said[-1]) == ({"status": "pulling manifest"}, SUCCESS)
    assert seen[0].json == {"model": f"{name}:latest", "stream": True}
    answered = await client.post("/api/generate", json={"model": name, "prompt": "hi", "stream": False})
    assert answered.status_code == 200
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.endpoint, record.model, record.backend) == ("/api/pull", f"{name}:latest", "one")
    assert (record.status, record.outcome, record.attempts) == (200, "ok", 1)
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (0, 0, False)
    assert record.bytes_out == len(answer.content)
    assert record.bytes_in == len(answer.request.content)


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create"])
async def test_one_object_for_who_wants_no_stream(gateway, client, fake, path):
    """The backend streams none the less: its silence is how a hung one is known."""
    body = {"model": "mine", "from": "llama3.2"} if path == "/api/create" else {"model": "llama3.2"}
    with new_calls(fake) as seen:
        answer = await client.post(path, json={**body, "stream": False})
    assert (answer.status_code, answer.json()) == (200, SUCCESS)
    assert answer.headers["content-type"] == "application/json"
    assert seen[0].json["stream"] is True
    assert (await gateway.record(answer.headers["x-request-id"])).outcome == "ok"


async def test_create_copy_and_delete(gateway, client, fake):
    answer = await client.post("/api/create", json={"model": "Mario", "from": "LLAMA3.2", "system": "You are Mario."})
    assert lines(answer)[-1] == SUCCESS
    answer = await client.post("/api/copy", json={"source": "mario", "destination": "me/luigi:v1"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert {"Mario:latest", "me/luigi:v1"} <= names(fake)
    for body in ({"model": "mario"}, {"name": "me/luigi:v1"}):
        answer = await client.request("DELETE", "/api/delete", json=body)
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await gateway.record(answer.headers["x-request-id"])).endpoint == "/api/delete"
    assert not {"Mario:latest", "me/luigi:v1"} & names(fake)
    answer = await client.request("DELETE", "/api/delete", json={"model": "mario"})
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'mario:latest' not found"})


async def test_open_webui_names_a_model_twice_and_asks_for_insecure(client, fake):
    with new_calls(fake) as seen:
        answer = await client.post("/api/pull", json={"name": "llama3.2", "model": "LLAMA3.2", "insecure": True})
    assert lines(answer)[-1] == SUCCESS
    assert "insecure" in answer.headers["x-gateway-adjusted"]
    assert seen[0].json.keys() == {"model", "stream"}


async def test_management_means_the_model_that_it_names_and_not_what_an_alias_stands_for(client, fake):
    with new_calls(fake) as seen:
        answer = await client.request("DELETE", "/api/delete", json={"model": "gpt-4o"})
    assert answer.status_code == 404
    assert seen[0].json == {"model": "gpt-4o:latest"}
    assert "qwen3:8b" in names(fake)


async def test_what_is_known_of_a_backend_is_asked_anew_at_once(gateway, fake):
    async with gateway.client(gateway.key) as client:
        await client.post("/api/copy", json={"source": "llama3.2", "destination": "fresh"})
        listed = [model["name"] for model in (await client.get("/api/tags")).json()["models"]]
        assert "fresh:latest" in listed
        assert "fresh:latest" in [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        await client.request("DELETE", "/api/delete", json={"model": "fresh"})
        answer = await client.post("/api/chat", json={"model": "fresh", "messages": []})
        assert answer.status_code == 404


# What is refused


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/api/pull", {}, 400, "invalid model name"),
        ("/api/pull", {"model": "../x"}, 400, "invalid model name"),
        ("/api/push", {"model": ""}, 400, "model is required"),
        ("/api/create", {"from": "llama3.2"}, 400, "invalid model name"),
        ("/api/copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ("/api/copy", {"source": "llama3.2"}, 400, 'destination "" is invalid'),
        ("/api/delete", {"name": "m@sha256:1"}, 400, 'name "m@sha256:1" is invalid'),
        ("/api/delete", {"name": "llama3.2", "model": "qwen3:8b"}, 400, "name different models"),
        ("/api/delete", {"Name": "llama3.2", "name": "llama3.2"}, 400, "twice"),
        ("/api/pull", {"model": 7}, 400, '"model" must be a string'),
        ("/api/pull", {"model": "x", "stream": "no"}, 400, '"stream" must be true or false'),
        ("/api/create", {"model": "x", "files": {"../a": DIGEST}}, 400, "not a file name"),
        ("/api/create", {"model": "x", "files": {"/etc/passwd": DIGEST}}, 400, "not a file name"),
        ("/api/create", {"model": "x", "adapters": {"a": "sha256:.."}}, 400, "invalid digest format"),
        ("/api/create", {"model": "x", "modelfile": "FROM /etc/passwd"}, 400, '"modelfile" is not taken here'),
        ("/api/create", {"model": "x", "path": "/etc/passwd"}, 400, '"path" is not taken here'),
        ("/api/create", {"model": "x", "from": "llama3.2", "remote_host": "https://evil.example"}, 403, "another host"),
        ("/api/create", {"model": "x", "from": "gpt-oss:120b-cloud"}, 403, "cloud"),
        ("/api/pull", {"model": "glm-4.7:cloud"}, 403, "cloud"),
        ("/api/pull", {"model": "evil.example/a/b"}, 403, "evil.example"),
        ("/api/pull", {"model": "http://169.254.169.254/latest/meta-data"}, 403, "169.254.169.254"),
        ("/api/pull", {"model": "127.0.0.1:11434/library/x", "insecure": True}, 403, "127.0.0.1:11434"),
        ("/api/push", {"model": "evil.example/a/b"}, 403, "evil.example"),
        ("/api/create", {"model": "x", "from": "evil.example/a/b"}, 403, "evil.example"),
    ],
)
async def test_m1_m2_what_may_not_be_asked_is_asked_of_no_backend(client, fake, path, body, status, said):
    with no_calls(fake):
        answer = await client.request("DELETE" if path == "/api/delete" else "POST", path, json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/pull", {"model": "qwen3:8b"}),
        ("/api/push", {"name": "QWEN3:8b"}),
        ("/api/delete", {"model": "library/qwen3:8b"}),
        ("/api/copy", {"source": "qwen3:8b", "destination": "mine-1"}),
        ("/api/copy", {"source": "llama3.2", "destination": "qwen3:8b"}),
        ("/api/create", {"model": "mine-2", "from": "qwen3:8b"}),
        ("/api/create", {"model": "qwen3:8b", "from": "llama3.2"}),
    ],
)
async def test_m1_the_models_of_a_key_hold_for_every_name_of_an_operation(gateway, fake, path, body):
    async with gateway.client(gateway.bound_key) as client:
        with no_calls(fake):
            answer = await client.request("DELETE" if path == "/api/delete" else "POST", path, json=body)
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (403, "model_not_allowed")


async def test_a_key_that_names_a_registry_may_fetch_from_it_but_not_without_tls(gateway, fake):
    name = pullable(fake, "reg.example:5000/team/m")
    async with gateway.client(gateway.bound_key) as client:
        assert lines(await client.post("/api/pull", json={"model": name}))[-1] == SUCCESS
        with no_calls(fake):
            answer = await client.post("/api/pull", json={"model": name, "insecure": True})
        assert (answer.status_code, answer.headers["x-gateway-error"]) == (403, "insecure_refused")


async def test_hugging_face_needs_no_more_and_keeps_its_case(client, fake):
    name = pullable(fake, "hf.co/Someone/Llama-GGUF:Q4_K_M")
    with new_calls(fake) as seen:
        assert lines(await client.post("/api/pull", json={"model": name}))[-1] == SUCCESS
    assert seen[0].json["model"] == name


async def test_m2_a_model_that_sends_prompts_away_gets_no_plainer_name(gateway, client, fake):
    fake.add_model(Model("stub", remote_host="https://ollama.com"))
    try:
        # Until it is known: who copies it may be the first to speak of it.
        async with asyncio.timeout(10):
            while "stub:latest" not in (await client.get("/api/tags")).text:
                async with gateway.client(gateway.cloud_key) as other:
                    if "stub:latest" in (await other.get("/api/tags")).text:
                        break
        with no_calls(fake):
            for path in ("/api/chat", "/api/generate", "/api/show"):
                answer = await client.post(path, json={"model": "stub", "prompt": "x", "messages": []})
                assert (answer.status_code, answer.headers["x-gateway-error"]) == (404, "model_not_found")
            for path, body in (
                ("/api/copy", {"source": "stub", "destination": "plain"}),
                ("/api/create", {"model": "plain", "from": "stub"}),
            ):
                answer = await client.post(path, json=body)
                assert (answer.status_code, answer.headers["x-gateway-error"]) == (403, "cloud_not_allowed")
        async with gateway.client(gateway.cloud_key) as other:
            assert (await other.post("/api/generate", json={"model": "stub", "prompt": "x"})).status_code == 200
            assert (await other.post("/api/copy", json={"source": "stub", "destination": "plain"})).status_code == 200
    finally:
        fake.remove_model("stub")
        fake.remove_model("plain")


async def test_what_is_not_known_is_not_passed_on(client, fake):
    body = {"model": "mine", "from": "llama3.2", "username": "x", "new_field_of_ollama": {"a": 1}, "license": ["MIT"]}
    with new_calls(fake) as seen:
        answer = await client.post("/api/create", json=body)
    assert seen[0].json == {"model": "mine:latest", "from": "llama3.2:latest", "license": ["MIT"], "stream": True}
    assert answer.headers["x-gateway-adjusted"] == "unknown fields"


# Which backend


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/pull", {"model": "llama3.2"}),
        ("POST", "/api/create", {"model": "x", "from": "mistral"}),
        ("POST", f"/api/blobs/{DIGEST}", None),
        ("HEAD", f"/api/blobs/{DIGEST}", None),
        ("DELETE", "/api/delete", {"model": "llama3.2"}),
    ],
)
async def test_of_several_backends_one_has_to_be_named(pair, fakes, fake, method, path, body):
    async with pair.client(pair.key) as client:
        with no_calls(fakes["one"]), no_calls(fakes["two"]):
            answer = await client.request(method, path, json=body)
            unknown = await client.request(method, path, json=body, headers={"X-Gateway-Backend": "three"})
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (400, "backend_needed")
    assert (unknown.status_code, unknown.headers["x-gateway-error"]) == (400, "unknown_backend")
    if method != "HEAD":
        assert "one, two" in answer.json()["error"]
        assert "one, two" in unknown.json()["error"]


async def test_the_named_one_gets_it_and_the_only_one_that_has_the_model_too(pair, fakes, fake):
    async with pair.client(pair.key) as client:
        for name, server in fakes.items():
            with new_calls(server) as seen:
                answer = await client.post("/api/pull", json={"model": "llama3.2"}, headers={"X-Gateway-Backend": name})
            assert answer.headers["x-gateway-backend"] == name
            assert lines(answer)[-1] == SUCCESS
            assert [call.path for call in seen] == ["/api/pull"]
            assert "x-gateway-backend" not in dict(seen[0].headers)
        with no_calls(fakes["one"]):
            answer = await client.post("/api/push", json={"model": "mistral", "stream": False})
            assert (answer.json(), answer.headers["x-gateway-backend"]) == (SUCCESS, "two")
            answer = await client.post("/api/copy", json={"source": "mistral", "destination": "twin"})
            assert (answer.status_code, answer.headers["x-gateway-backend"]) == (200, "two")


async def test_a_copy_that_was_made_a_moment_ago_counts(pair, fakes, fake):
    """Who has a model is asked before it is deleted, not remembered."""
    fakes["one"].add_model("mine-too")
    async with pair.client(pair.key) as client:
        assert (
            await client.post("/api/copy", json={"source": "mistral", "destination": "mine-too"})
        ).status_code == 200
        with no_calls(fakes["one"]), no_calls(fakes["two"]):
            answer = await client.request("DELETE", "/api/delete", json={"model": "mine-too"})
        assert (answer.status_code, answer.headers["x-gateway-error"]) == (400, "backend_needed")
        fakes["one"].remove_model("mine-too")
        answer = await client.request("DELETE", "/api/delete", json={"model": "mine-too"})
        assert (answer.status_code, answer.headers["x-gateway-backend"]) == (200, "two")


async def test_p8_for_inference_the_header_chooses_nothing(pair, fakes, fake):
    async with pair.client(pair.key) as client:
        answer = await client.post(
            "/api/generate",
            json={"model": "mistral", "prompt": "x", "stream": False},
            headers={"X-Gateway-Backend": "one"},
        )
    assert answer.headers["x-gateway-backend"] == "two"


# What fails


@pytest.mark.parametrize(
    ("faults", "error", "code"),
    [
        ({"eof_after_chunks": 2}, "broke off", "incomplete"),
        ({"reset_after_chunks": 2}, "broke off", "broken_stream"),
        ({"error_after_chunks": 2, "error": "open /root/.ollama/x: no space left"}, "no space left", "backend_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_b3_a_pull_without_success_has_failed(gateway, client, fake, stream, faults, error, code):
    fake.faults(times=1, path="/api/pull", model="llama3.2:latest", **faults)
    with new_calls(fake) as seen:
        answer = await client.post("/api/pull", json={"model": "llama3.2", "stream": stream})
    last = lines(answer)[-1]
    assert list(last) == ["error"]
    assert error in last["error"]
    assert "/root" not in answer.text
    assert answer.status_code == (200 if stream else 502)
    assert len(seen) == 1, "never a second time"
    record = await gateway.record(answer.headers["x-request-id"])
    assert record.outcome == "failed"
    assert record.error == (code if stream or code != "broken_stream" else "incomplete")
    assert (record.prompt_tokens, record.completion_tokens) == (0, 0)


async def test_a_model_that_is_nowhere(client, fake):
    answer = await client.post("/api/pull", json={"model": "nowhere"})
    assert lines(answer)[-1] == {"error": "pull model manifest: file does not exist"}
    answer = await client.post("/api/pull", json={"model": "nowhere", "stream": False})
    assert answer.status_code == 502
    assert "file does not exist" in answer.json()["error"]


@pytest.mark.parametrize("status", [302, 400, 401, 500, 503])
async def test_p7_b9_what_else_a_backend_says(client, fake, status):
    fault = {"redirect": status} if status == 302 else {"status": status, "error": "see http://10.0.0.1/x"}
    fake.faults(times=1, path="/api/copy", **fault)
    with new_calls(fake) as seen:
        answer = await client.post("/api/copy", json={"source": "llama3.2", "destination": "x"})
    assert len(seen) == 1
    assert answer.status_code == (status if 400 <= status < 500 else 502)
    assert "10.0.0.1" not in answer.text


async def test_b4_a_download_may_take_longer_than_any_call_but_not_be_silent(gateway, client, fake):
    """CALL_TOTAL_SECONDS is 5, BACKEND_GAP_SECONDS 3."""
    fake.faults(times=1, path="/api/pull", model="llama3.2:latest", gap=1.3)
    for stream in (False,):
        answer = await client.post("/api/pull", json={"model": "llama3.2", "stream": stream})
        assert answer.json() == SUCCESS
    record = await gateway.record(answer.headers["x-request-id"])
    print(f"a pull of {record.total_us / 1e6:.1f} s")
    assert record.total_us > 5_000_000
    fake.faults(times=1, path="/api/pull", model="llama3.2:latest", hang_after_chunks=2)
    with new_calls(fake) as seen:
        answer = await client.post("/api/pull", json={"model": "llama3.2"})
        await fake.saw_idle()
    assert "fell silent" in lines(answer)[-1]["error"]
    assert seen[0].disconnected
    assert (await gateway.record(answer.headers["x-request-id"])).error == "gap_timeout"
    answer = await client.post("/api/chat", json={"model": "llama3.2", "messages": []})
    assert answer.status_code == 200, "a slow registry does not make a backend unfit"


async def test_b10_who_leaves_ends_the_pull(gateway, client, fake):
    fake.faults(times=1, path="/api/pull", model="llama3.2:latest", hang_after_chunks=2)
    with new_calls(fake) as seen:
        async with client.stream("POST", "/api/pull", json={"model": "llama3.2"}) as answer:
            async for _ in answer.aiter_raw():
                break
        await fake.saw_idle()
    assert seen[0].disconnected
    assert (await gateway.record(answer.headers["x-request-id"])).outcome == "cancelled"


async def test_a7_who_may_manage_no_more_is_cut(gateway, client, fake):
    row, key = gateway.make_key("loses", may_manage=True)
    async with gateway.client(key) as losing:
        async with asyncio.timeout(10):
            while (await losing.post("/api/copy", json={"source": "nope", "destination": "x"})).status_code != 404:
                await asyncio.sleep(0.05)
        fake.faults(times=1, path="/api/pull", model="llama3.2:latest", hang_after_chunks=2)
        async with losing.stream("POST", "/api/pull", json={"model": "llama3.2"}) as answer:
            said = b""
            async for chunk in answer.aiter_raw():
                said += chunk
                gateway.rows(ApiKey).filter(pk=row.pk).update(may_manage=False)
    assert b"withdrawn" in said
    assert (await gateway.record(answer.headers["x-request-id"])).outcome == "cut"


async def test_limits_count_the_calls_of_management_but_no_tokens(gateway, fake):
    row, key = gateway.make_key("limited", may_manage=True)
    for metric, amount in (("requests", 2), ("tokens", 1)):
        gateway.rows(Limit).create(scope="key", key=row, metric=metric, window="hour", amount=amount)
    async with gateway.client(key) as client:
        async with asyncio.timeout(10):
            while (await client.post("/api/chat", json={"model": "llama3.2", "messages": []})).status_code != 429:
                await asyncio.sleep(0.05)
        body = {"source": "llama3.2", "destination": "x"}
        statuses = [(await client.post("/api/copy", json=body)).status_code for _ in range(4)]
    assert statuses.count(200) <= 2
    assert statuses[-1] == 429


# Blobs


async def test_a_blob_is_uploaded_and_found(gateway, client, fake):
    path = f"/api/blobs/{DIGEST}"
    assert (await client.head(path)).status_code == 404
    for declared in (True, False):
        content = BLOB if declared else pieces(BLOB)
        with new_calls(fake) as seen:
            answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.content) == (201 if declared else 200, b"")
        assert answer.headers["x-gateway-backend"] == "one"
        assert seen[0].target == path
        headers = {name.lower(): value for name, value in seen[0].headers}
        assert headers["content-type"] == "application/octet-stream"
        assert (headers.get("content-length"), headers.get("transfer-encoding")) == (
            (str(len(BLOB)), None) if declared else (None, "chunked")
        )
        record = await gateway.record(answer.headers["x-request-id"])
        assert (record.endpoint, record.model, record.outcome) == ("/api/blobs/{digest}", "", "ok")
        assert record.bytes_in == len(BLOB) or not declared
    answer = await client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    answer = await client.head(f"/api/blobs/sha256-{DIGEST[7:].upper()}")
    assert answer.status_code == 200, "as Ollama takes it"


async def pieces(data):
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@pytest.mark.parametrize(
    "digest",
    [
        "x",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "g" * 64,
        "sha512:" + "0" * 64,
        "sha256_" + "0" * 64,
        "sha256%3A" + "0" * 64,
        "sha256:" + "0" * 63 + "%30",
        "sha256:" + "0" * 64 + "%0a",
        "..%2f..%2fetc%2fpasswd",
        "sha256:" + "٠" * 64,
    ],
)
async def test_p3_another_digest_is_none(client, fake, digest):
    with no_calls(fake):
        answer = await client.post(f"/api/blobs/{digest}", content=b"x")
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid digest format"})
        assert (await client.head(f"/api/blobs/{digest}")).status_code == 400
        for path in (f"/api/blobs/{digest}/x", "/api/blobs/", "/api/blobs"):
            assert (await client.post(path, content=b"x")).status_code == 404


async def test_a_blob_that_is_another_is_refused_by_the_backend(client, fake):
    wrong = "sha256:" + "1" * 64
    answer = await client.post(f"/api/blobs/{wrong}", content=BLOB)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("digest mismatch")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_j9_a_compressed_upload_is_refused(client, fake, encoding):
    with no_calls(fake):
        answer = await client.post(f"/api/blobs/{DIGEST}", content=b"x", headers={"Content-Encoding": encoding})
        assert answer.status_code == 415
        answer = await client.post("/api/pull", content=b"x", headers={"Content-Encoding": encoding})
        assert answer.status_code == 415
