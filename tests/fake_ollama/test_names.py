import pytest

from proxy.fake_ollama.names import InvalidName, parse_name


@pytest.mark.parametrize(
    "text",
    [
        "llama3.2",
        "llama3.2:latest",
        "library/llama3.2",
        "registry.ollama.ai/library/llama3.2:latest",
        "LLAMA3.2:Latest",
        " llama3.2 ",
        "llama3.2:local",
        "llama3.2:LOCAL",
        "https://registry.ollama.ai/library/llama3.2",
    ],
)
def test_spellings_of_one_model(text):
    assert parse_name(text).key == "registry.ollama.ai/library/llama3.2:latest"


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("user/m", "user/m:latest"),
        ("hf.co/user/repo:Q4_K_M", "hf.co/user/repo:Q4_K_M"),
        ("host:5000/ns/m", "host:5000/ns/m:latest"),
        ("host:5000/ns/m:7b", "host:5000/ns/m:7b"),
        ("m:7b:local", "m:7b"),
        ("Llama3.2", "Llama3.2:latest"),
    ],
)
def test_shortest_display(text, display):
    assert parse_name(text).display == display


@pytest.mark.parametrize(
    "text", ["", " ", "a b", "../x", "m@sha256:" + "0" * 64, "m:", "a/b/c/d", "-m", "m" * 81, "n.s/m", "/m:a/b\\"]
)
def test_malformed_names(text):
    with pytest.raises(InvalidName):
        parse_name(text)


@pytest.mark.parametrize("text", ["glm-4.7:cloud", "gpt-oss:120b-cloud", "M:CLOUD", "m:120B-Cloud"])
def test_cloud_names(text):
    assert parse_name(text).cloud


@pytest.mark.parametrize("text", ["m:local:cloud", "m:cloud:local"])
def test_local_and_cloud_at_once(text):
    with pytest.raises(InvalidName, match="use either :local or :cloud, not both"):
        parse_name(text)


async def test_answers_echo_the_name_as_sent(wire):
    for asked in (" LLAMA3.2 ", "library/llama3.2:latest"):
        answer = await wire.post("/api/generate", {"model": asked, "prompt": "x", "stream": False})
        assert answer.lines[0]["model"] == asked


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", {"model": "a b", "messages": []}, 400, "invalid model name"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/push", {}, 400, "model is required"),
        ("/api/pull", {}, 400, "invalid model name"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope:latest' not found"),
        ("/api/embed", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", {"model": "nope", "prompt": "x"}, 404, 'model "nope" not found, try pulling it first'),
        (
            "/api/embeddings",
            {"model": "NOMIC-embed-text", "prompt": "x"},
            404,
            'model "NOMIC-embed-text" not found, try pulling it first',
        ),
        ("/api/copy", {"source": "nope", "destination": "x"}, 404, 'model "nope" not found'),
        ("/api/copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ("/api/chat", {"model": "m:local:cloud"}, 400, 'use either :local or :cloud, not both: "m:local:cloud"'),
    ],
)
async def test_errors_about_names(wire, path, body, status, text):
    answer = await wire.post(path, body)
    assert (answer.status, answer.lines[0]["error"]) == (status, text)


async def test_delete_with_a_malformed_name(wire):
    answer = await wire.call("DELETE", "/api/delete", {"model": "a b"})
    assert (answer.status, answer.lines[0]["error"]) == (400, 'name "a b" is invalid')


async def test_cloud_errors_have_the_native_shape_everywhere(wire):
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        body = {"model": "glm-4.7:cloud", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        answer = await wire.post(path, body)
        assert answer.status == 401
        assert answer.lines[0]["error"] == "unauthorized"
        assert answer.lines[0]["signin_url"].startswith("https://ollama.com/connect?name=")
