"""What a call reserves before a backend has counted: four bytes a token, but pictures and sounds are no text."""

import orjson
import pytest

from proxy import body
from proxy.dialects import ENDPOINTS
from proxy.dialects.weight import TOKENS_PER_IMAGE, of_sound

PICTURE = "A" * 1_400_000
URI = f"data:image/png;base64,{PICTURE}"
TEXT = "x" * 40_000


def user(content, **more):
    return {"messages": [{"role": "user", "content": content, **more}]}


# path → the same question with one picture, in each place where it may stand
PICTURES = [
    ("/api/chat", user(TEXT, images=[PICTURE])),
    ("/api/generate", {"prompt": TEXT, "images": [PICTURE]}),
    ("/v1/chat/completions", user([{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": URI}}])),
    ("/v1/chat/completions", user([{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": URI}])),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URI}]}], "instructions": TEXT},
    ),
    ("/v1/messages", user([{"type": "image", "source": {"type": "base64", "data": PICTURE}}]) | {"system": TEXT}),
    (
        "/v1/messages",
        user([{"type": "tool_result", "content": [{"type": "image", "source": {"data": PICTURE}}]}]) | {"system": TEXT},
    ),
]


def weight_of(path, request):
    raw = orjson.dumps({"model": "m", **request})
    endpoint = ENDPOINTS[path]
    return endpoint.weigh(body.read(raw, endpoint.schema), len(raw))


@pytest.mark.parametrize(("path", "request_"), PICTURES)
def test_a_picture_weighs_what_a_model_makes_of_it(path, request_):
    tokens = weight_of(path, request_) // 4
    assert 10_000 + TOKENS_PER_IMAGE <= tokens <= 10_000 + TOKENS_PER_IMAGE + 60


def test_a_sound_weighs_by_its_length():
    parts = [{"type": "input_audio", "input_audio": {"data": "A" * 640_000, "format": "mp3"}}]
    assert of_sound(480_000) == 750
    assert 750 <= weight_of("/v1/chat/completions", user(parts)) // 4 <= 750 + 60


@pytest.mark.parametrize("path", [path for path, _ in PICTURES])
def test_text_weighs_its_bytes_wherever_it_stands(path):
    for request in ({"prompt": TEXT}, user(TEXT), {"input": TEXT}, {"made_up": TEXT}, {"system": TEXT}):
        assert weight_of(path, request) == len(orjson.dumps({"model": "m", **request}))


@pytest.mark.parametrize("path", sorted({path for path, _ in PICTURES}))
def test_j7_no_shape_breaks_it(path):
    """Fields that Ollama does not know may hold anything."""
    odd = [1, None, True, "x", {}, [], [1], [[]], {"url": 1}, {"data": {}}, {"data": [1]}]
    for name in ("images", "image_url", "source", "input_audio", "output", "content", "messages", "input"):
        for value in odd:
            for request in ({name: value}, {"messages": [{name: value}]}, {"input": [{name: [{name: value}]}]}):
                size = ENDPOINTS[path].weigh({**request, "made_up": TEXT}, len(TEXT) + 100)
                assert size >= len(TEXT)
