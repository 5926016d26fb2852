"""Embeddings, input by input."""

import asyncio
import json

import pytest
import pytest_asyncio

from proxy.cache.vectors import OddVectors, joined, shares, split
from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.library import Model
from tests.cache.house import house
from tests.live.seen import calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "nomic-embed-text"
PATHS = ["/api/embed", "/v1/embeddings"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[Model(MODEL, embedding_length=768)], slots=50) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def home(fake, tmp_path):
    fake.reset()
    async with house([fake], tmp_path, f"{MODEL}:latest", policy="deterministic") as made:
        yield made


def asked(*texts, **more):
    return {"model": MODEL, "input": list(texts), **more}


def vectors(answer):
    said = answer.json()
    return said["embeddings"] if "embeddings" in said else [item["embedding"] for item in said["data"]]


def tokens(answer):
    said = answer.json()
    return said["prompt_eval_count"] if "prompt_eval_count" in said else said["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", PATHS)
async def test_of_a_hundred_inputs_with_ninety_known_ten_go_upstream(home, fake, path):
    known, new = [f"known input {n}" for n in range(90)], [f"new input {n}" for n in range(10)]
    first = await home.ask(path, asked(*known))
    mixed = [text for at in range(10) for text in (*known[9 * at : 9 * at + 9], new[at])]
    second = await home.ask(path, asked(*mixed))
    assert [answer.cache for answer in (first, second)] == ["MISS", "PARTIAL"]
    assert calls(fake)[-1].json["input"] == new
    third = await home.ask(path, asked(*mixed))
    assert (third.cache, vectors(third), tokens(third)) == ("HIT", vectors(second), tokens(second))
    alone = await home.ask(path, asked(*mixed), headers=[(b"cache-control", b"no-cache")])
    assert alone.cache == "MISS"
    assert vectors(alone) == vectors(second), "in the order of the inputs"
    assert tokens(alone) == tokens(second)
    assert home.ledger.of("outcome") == ["ok", "ok", "cached", "ok"]
    sums = home.ledger.of("prompt_tokens")
    assert sums[0] + sums[1] == sums[2] == sums[3] == tokens(alone), "each input is paid for once"
    if path == "/v1/embeddings":
        assert [item["index"] for item in second.json()["data"]] == list(range(100))


@pytest.mark.parametrize("path", PATHS)
async def test_an_input_is_the_same_alone_twice_and_among_others(home, fake, path):
    one = await home.ask(path, {"model": MODEL, "input": "a"})
    twice = await home.ask(path, asked("a", "b", "a"))
    assert calls(fake)[-1].json["input"] == ["b"]
    assert vectors(twice)[0] == vectors(twice)[2] == vectors(one)[0]
    assert (await home.ask(path, asked("b", "a"))).cache == "HIT"
    repeated = await home.ask(path, asked("c", "c"))
    assert calls(fake)[-1].json["input"] == ["c"]
    assert len(vectors(repeated)) == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("more", [{"dimensions": 8}, {"truncate": False}, {"encoding_format": "base64"}], ids=str)
async def test_t5_another_kind_of_vector_never_hits(home, path, more):
    await home.ask(path, asked("a"))
    assert (await home.ask(path, asked("a", **more))).cache == "MISS"
    again = await home.ask(path, asked("a", **more))
    assert again.cache == "HIT"


async def test_t5_the_endpoints_have_vectors_of_their_own(home):
    for path in PATHS:
        assert (await home.ask(path, asked("a"))).cache == "MISS"
    older = {"model": MODEL, "prompt": "a"}
    assert [(await home.ask("/api/embeddings", older)).cache for _ in range(2)] == ["MISS", "HIT"]
    assert (await home.ask("/api/embed", asked("a"), key="two")).cache == "MISS"


async def test_vectors_in_base64_are_kept_as_they_are(home):
    first, again = [await home.ask("/v1/embeddings", asked("a", "b", encoding_format="base64")) for _ in range(2)]
    assert again.cache == "HIT"
    assert json.loads(again.body) == json.loads(first.body)
    assert all(isinstance(vector, str) for vector in vectors(again))


@pytest.mark.parametrize("path", PATHS)
async def test_the_same_inputs_at_once_are_one_call_upstream(home, fake, path):
    fake.faults(hang_before_headers=True, path=path, model=MODEL)
    many = [asyncio.ensure_future(home.ask(path, asked("x", "y", "z"))) for _ in range(5)]
    await home.until_joined(5)
    await home.until(lambda: fake.gate.waiting == 1)
    fake.release()
    answers = [await one for one in many]
    assert len(calls(fake)) == 1
    assert len({answer.body for answer in answers}) == 1
    assert sorted(home.ledger.of("outcome")) == ["coalesced"] * 4 + ["ok"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fault",
    [{"status": 500, "error": "x"}, {"cut_after_bytes": 300}, {"cut_after_bytes": 5000}, {"raw": "[]"}],
    ids=str,
)
async def test_what_fails_upstream_is_an_error_and_nothing_of_it_is_kept(home, fake, path, fault):
    await home.ask(path, asked("known"))
    fake.faults(path=path, model=MODEL, **fault)
    answer = await home.ask(path, asked("known", "new one", "new two"))
    assert answer.status == 502
    assert home.runtime.cache.counts.entries == 1
    fake.clear_faults()
    answer = await home.ask(path, asked("known", "new one", "new two"))
    assert (answer.cache, len(vectors(answer))) == ("PARTIAL", 3)


async def test_very_many_inputs_are_passed_on_as_they_are(home):
    answer = await home.ask("/api/embed", asked(*(f"{n}" for n in range(513))))
    assert (answer.cache, len(vectors(answer))) == ("BYPASS", 513)


async def test_large_answers_are_whole(home, fake):
    texts = [f"{n}" for n in range(200)]
    first, again = [await home.ask("/api/embed", asked(*texts)) for _ in range(2)]
    assert len(first.body) > 1 << 20
    assert again.cache == "HIT"
    assert vectors(again) == vectors(first)


async def test_an_answer_that_cannot_be_held_is_an_error_that_says_so(home, monkeypatch):
    monkeypatch.setattr("proxy.cache.coalescing.MAX_BEHIND", 100_000)
    monkeypatch.setattr(home.runtime.cache, "room_for_flight", lambda most: 0)
    answer = await home.ask("/api/embed", asked(*(f"{n}" for n in range(200))))
    assert answer.status == 503
    assert "larger than what the gateway can hold" in answer.json()["error"]
    assert (await home.ask("/api/embed", asked("few"))).status == 200


async def test_an_alias_is_named_in_the_answer(home):
    home.use(aliases=(("mine", MODEL),))
    for path in PATHS:
        for texts in (("a",), ("a", "b"), ("a", "b")):
            assert (await home.ask(path, asked(*texts, model="mine"))).json()["model"] == "mine"


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/api/embed", b'{"model":"m","embeddings":[[1],[2]],"x":1}', 3),
        ("/api/embed", b'{"model":"m","embeddings":[]}', 1),
        ("/api/embed", b'{"model":"m","embeddings":[[[1]],[2]]}', 2),
        ("/api/embed", b'{"model":"m"}', 1),
        ("/api/embed", b'{"model":"m","embeddings":[[1],[2]', 2),
        ("/api/embed", b'{"model":"m","embeddings":[[1],[2]],"x":}', 2),
        ("/v1/embeddings", b'{"object":"list","data":[],"model":"m"}', 1),
        ("/v1/embeddings", b'{"object":"list","data":[{"object":"embedding","embedding":[1],"index":1}],"m":1}', 1),
        ("/v1/embeddings", b'{"object":"list","data":[{"embedding":[1],"object":"embedding","index":0}],"m":1}', 1),
        ("/v1/embeddings", b'{"object":"list","data":[{"object":"embedding","embedding":{},"index":0}],"m":1}', 1),
    ],
)
async def test_vectors_of_an_odd_form_are_not_taken_apart(path, body, count):
    with pytest.raises(OddVectors):
        split(path, body, count)


@pytest.mark.parametrize("path", PATHS)
async def test_vectors_are_taken_apart_and_put_together(path):
    each = [b"[0.1,-2e-05]", b'"AAAA"' if path == "/v1/embeddings" else b"[1]", b"[]"[:0] or b"[3,4]"]
    body = joined(path, "m", each, 7, {})
    taken = split(path, body, 3)
    assert taken.each == each
    assert json.loads(body)


@pytest.mark.parametrize(
    ("total", "sizes"), [(0, [1, 2]), (7, [1, 1, 1]), (1, [5, 5]), (100, [1, 99]), (5, [0, 0]), (3, [])]
)
async def test_tokens_are_shared_out_and_none_is_lost(total, sizes):
    each = shares(total, sizes)
    assert sum(each) == (total if sizes else 0)
    assert all(share >= 0 for share in each)
