"""Row T4 live: what each key is told of models, over several backends."""

import asyncio
from datetime import datetime, timedelta

import httpx
import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.library import Model
from proxy.models import Backend, ModelAlias
from tests.live.raw import RawClient, bearer
from tests.live.seen import new_calls, no_calls
from tests.no_tls import NO_TLS

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOON = datetime.fromisoformat("2026-05-10T12:00:00+02:00")
# What an ordinary key is never told of a model.
HIDDEN = {"license", "modelfile", "template", "system", "messages", "projector_info", "tensors"}


def at(hours):
    return NOON + timedelta(hours=hours)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fakes():
    first = [
        Model("llama3.2", modified_at=at(0), digest="1" * 64, system="You are a secret."),
        Model("Mistral:7B", modified_at=at(3)),
        Model("me/private", modified_at=at(1)),
        Model("gpt-oss:120b-cloud", modified_at=at(9), remote_host="https://ollama.com"),
        Model("stub", modified_at=at(8), remote_host="https://ollama.com"),
    ]
    second = [Model("llama3.2", modified_at=at(5), digest="2" * 64), Model("qwen3:8b", modified_at=at(-2))]
    async with FakeOllama(models=first, slots=8) as one, FakeOllama(models=second, slots=8) as two:
        yield {"one": one, "two": two}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fakes):
    made = make_shared_gateway()
    for name, server in fakes.items():
        made.make_backend(server.url, name, slots=8)
    for pattern, model in (
        ("my-assistant", "llama3.2"),
        ("fast:v1", "qwen3:8b"),
        ("gone", "not-installed"),
        ("team-*", "llama3.2"),
        ("qwen3:8b", "llama3.2"),
        ("remote", "stub"),
    ):
        made.rows(ModelAlias).create(pattern=pattern, model=model)
    made.keys = {
        "all": made.make_key("all")[1],
        "one": made.make_key("one", models_allowed=["me/*"])[1],
        "alias": made.make_key("alias", models_allowed=["my-assistant"])[1],
        "none": made.make_key("none", models_allowed=["nothing"])[1],
        "cloud": made.make_key("cloud", may_use_cloud=True)[1],
        "manages": made.make_key("manages", may_manage=True)[1],
    }
    return await asyncio.to_thread(made.start)


@pytest.fixture
def ask(gateway):
    async def asked(role, path, method="GET", **options):
        async with gateway.client(gateway.keys[role]) as client:
            return await client.request(method, path, **options)

    return asked


LOCAL = ["llama3.2:latest", "Mistral:7B", "me/private:latest", "qwen3:8b"]


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("all", LOCAL),
        ("one", ["me/private:latest"]),
        ("alias", []),
        ("none", []),
        ("manages", LOCAL),
        ("cloud", ["gpt-oss:120b-cloud", "stub:latest", *LOCAL]),
    ],
)
async def test_t4_tags_are_those_of_all_backends_that_a_key_may_use_newest_first(ask, fakes, role, names):
    answer = await ask(role, "/api/tags")
    models = answer.json()["models"]
    assert [model["name"] for model in models] == names
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as direct:
        theirs = [
            model for fake in fakes.values() for model in (await direct.get(fake.url + "/api/tags")).json()["models"]
        ]
    assert all(model in theirs for model in models), "items are as a backend wrote them"
    assert {model["digest"] for model in models if model["name"] == "llama3.2:latest"} <= {"2" * 64}, "the newer one"


@pytest.mark.parametrize(
    ("role", "ids"),
    [
        ("all", [*LOCAL, "fast:v1", "my-assistant"]),
        ("one", ["me/private:latest"]),
        ("alias", ["my-assistant"]),
        ("none", None),
        ("cloud", ["gpt-oss:120b-cloud", "stub:latest", *LOCAL, "fast:v1", "my-assistant", "remote"]),
    ],
)
async def test_t4_v1_models_are_the_same_and_the_aliases_that_are_one_name(ask, role, ids):
    answer = await ask(role, "/v1/models")
    assert answer.headers["content-type"] == "application/json"
    listed = answer.json()
    assert listed["object"] == "list"
    if ids is None:
        assert listed["data"] is None, "as Ollama says that there are none"
        return
    assert [model["id"] for model in listed["data"]] == ids
    by_id = {model["id"]: model for model in listed["data"]}
    if "me/private:latest" in by_id:
        assert by_id["me/private:latest"] == {
            "id": "me/private:latest",
            "object": "model",
            "created": int(at(1).timestamp()),
            "owned_by": "me",
        }
    if "my-assistant" in by_id:
        assert by_id["my-assistant"]["created"] == int(at(5).timestamp())
        assert by_id["my-assistant"]["owned_by"] == "library"


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("all", "llama3.2", 200),
        ("all", "LLAMA3.2:Latest", 200),
        ("all", "llama3.2%3Alatest", 200),
        ("all", "my-assistant", 200),
        ("all", "team-red", 200),
        ("all", "gone", 404),
        ("all", "nope", 404),
        ("all", "stub", 404),
        ("all", "remote", 404),
        ("cloud", "stub", 200),
        ("alias", "my-assistant", 200),
        ("alias", "llama3.2", 404),
        ("one", "llama3.2", 404),
        ("all", "me%2Fprivate", 404),
        ("all", "%2e%2e%2fapi%2fdelete", 404),
        ("all", "a%20b", 400),
        ("all", "%00", 400),
        ("all", "%ff", 400),
        ("all", "%25", 400),
        ("all", "x" * 600, 400),
    ],
)
async def test_p4_one_model_by_its_name_which_leads_to_no_backend(gateway, fakes, role, path, status):
    async with RawClient(gateway.port) as raw:
        with no_calls(fakes["one"]), no_calls(fakes["two"]):
            answer = await raw.ask("GET", f"/v1/models/{path}", bearer(gateway.keys[role]))
    assert answer.status == status, answer
    said = httpx.Response(200, content=answer.body).json()
    if status == 200:
        assert said["id"] == path.replace("%3A", ":")
        assert said["object"] == "model"
    else:
        kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
        assert said["error"]["type"] == kind
        assert answer.all("x-gateway-error")


async def test_a_namespaced_name_is_another_path(ask):
    assert (await ask("all", "/v1/models/me/private")).status_code == 404
    assert (await ask("all", "/v1/models/")).status_code == 404


async def test_t4_ps_tells_only_of_models_that_a_key_may_use(ask, fakes):
    for name, model in (("one", "llama3.2"), ("one", "me/private"), ("two", "qwen3:8b"), ("two", "llama3.2")):
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as direct:
            await direct.post(fakes[name].url + "/api/generate", json={"model": model})
    expected = {
        "all": {"llama3.2:latest", "me/private:latest", "qwen3:8b"},
        "one": {"me/private:latest"},
        "alias": set(),
    }
    for role, names in expected.items():
        models = (await ask(role, "/api/ps")).json()["models"]
        assert {model["name"] for model in models} == names
        assert len(models) == len(names), "each once"


async def test_head_is_get_without_the_body(ask):
    for path in ("/", "/api/version", "/api/tags"):
        get, head = await ask("all", path), await ask("all", path, "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_version_is_of_the_form_that_clients_read_and_status_tells_of_the_cloud(ask):
    assert (await ask("all", "/api/version")).json() == {"version": "0.33.0"}
    assert (await ask("all", "/api/status")).json() == {"cloud": {"disabled": True, "source": "config"}}
    assert (await ask("cloud", "/api/status")).json() == {"cloud": {"disabled": False, "source": "none"}}


async def test_t4_an_ordinary_key_is_shown_what_apps_need_and_nothing_more(gateway, ask, fakes):
    body = {"model": "my-assistant", "verbose": True}
    fakes["one"].faults(path="/api/show", lacks_model=True)  # so that both answers are of `two`
    try:
        with new_calls(fakes["two"]) as seen:
            ordinary, managing = (
                await ask("all", "/api/show", "POST", json=body),
                await ask("manages", "/api/show", "POST", json=body),
            )
    finally:
        fakes["one"].clear_faults()
    assert [call.json.get("verbose") for call in seen] == [None, True]
    shown, everything = ordinary.json(), managing.json()
    assert {"details", "model_info", "capabilities", "parameters", "modified_at"} == shown.keys()
    assert {"license", "modelfile", "template"} <= everything.keys()
    for name in ("details", "capabilities", "parameters", "modified_at"):
        assert shown[name] == everything[name]
    told = ordinary.headers["x-gateway-adjusted"].split(", ")
    assert set(told) == {"verbose", "license", "modelfile", "template"}
    assert "x-gateway-adjusted" not in managing.headers
    assert ordinary.headers["content-length"] == str(len(ordinary.content))
    record = await gateway.record(ordinary.headers["x-request-id"])
    assert (record.outcome, record.prompt_tokens, record.bytes_out) == ("ok", 0, len(ordinary.content))


async def test_t4_a_system_prompt_is_for_those_who_manage(gateway, ask, fakes):
    fakes["two"].faults(path="/api/show", lacks_model=True)
    try:
        for role, told in (("all", False), ("cloud", False), ("manages", True)):
            answer = await ask(role, "/api/show", "POST", json={"model": "llama3.2"})
            assert ("You are a secret." in answer.text) is told
            assert ("/models/blobs" in answer.text) is told
    finally:
        fakes["two"].clear_faults()


@pytest.mark.parametrize(
    "faults",
    [
        {"raw": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[1,2]"},
        {"raw": 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"system"'},
        {"gzip": True},
    ],
)
async def test_t4_what_cannot_be_read_is_not_shown(ask, fakes, faults):
    for fake in fakes.values():
        fake.faults(path="/api/show", **faults)
    try:
        answer = await ask("all", "/api/show", "POST", json={"model": "llama3.2"})
    finally:
        for fake in fakes.values():
            fake.clear_faults()
    assert answer.status_code == 502
    assert "system" not in answer.text


async def test_no_backend_no_models(gateway, ask):
    """[] where Ollama says [], null where it says null. The last test: it switches all off."""
    gateway.rows(Backend).update(enabled=False)
    async with asyncio.timeout(10):
        while (await ask("all", "/api/tags")).json()["models"]:
            await asyncio.sleep(0.05)
    assert (await ask("all", "/api/ps")).json() == {"models": []}
    assert (await ask("all", "/v1/models")).json() == {"object": "list", "data": None}
    assert (await ask("all", "/v1/models/llama3.2")).status_code == 404
