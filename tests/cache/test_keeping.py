"""What is kept, for whom, and what never is. Rows of T5."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from proxy.cache.policy import NO_PURGES, Settings
from proxy.cache.responses import BYPASSED, HITS, MISSES
from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.library import Model
from proxy.snapshot import Policy
from tests.cache.house import house
from tests.live.seen import calls
from tests.proxy.rules import limit
from usage.costs import PriceRow

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL, DIGEST = "llama3.2", "d" * 64
SEER = Model("seer", capabilities=("completion", "vision"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, "qwen3:8b", SEER], slots=50) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def home(fake, tmp_path):
    fake.reset()
    async with house([fake], tmp_path, f"{MODEL}:latest") as made:
        yield made


def chat(text="x", **more):
    return {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": text}], **more}


async def verdicts(home, *bodies, path="/api/chat", **how):
    return [(await home.ask(path, one, **how)).cache for one in bodies]


async def test_t5_two_tenants_with_the_same_body_never_share(home, fake):
    asked = chat(options={"temperature": 0})
    assert await verdicts(home, asked, asked) == ["MISS", "HIT"]
    assert await verdicts(home, asked, asked, key="two") == ["MISS", "HIT"]
    fake.faults(hang_before_headers=True, path="/api/chat", model=MODEL)
    both = [asyncio.ensure_future(home.ask("/api/chat", chat("in flight"), key=key)) for key in ("one", "two")]
    await home.until(lambda: fake.gate.waiting == 2)
    fake.release()
    assert [(await one).cache for one in both] == ["MISS", "MISS"], "nor while it is made"


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [("shared", "shared", True), ("shared", "tenant", False), ("tenant", "shared", False), ("key", "key", False)],
)
async def test_t5_tenants_share_only_if_both_chose_to(home, one, two, shared):
    home.use(cache_choices={1: ("all", one), 2: ("all", two)})
    answers = [await home.ask("/api/chat", chat(), key=key) for key in ("one", "two")]
    assert [answer.cache for answer in answers] == ["MISS", "HIT" if shared else "MISS"]
    assert all(answer.headers["cache-control"] == "no-store" for answer in answers)


async def test_t5_keys_of_a_tenant_share_unless_each_keeps_its_own(home):
    home.add_key("other", tenant_id=1)
    assert await verdicts(home, chat("a")) + await verdicts(home, chat("a"), key="other") == ["MISS", "HIT"]
    home.use(cache_choices={1: ("all", "key")})
    assert await verdicts(home, chat("a")) + await verdicts(home, chat("a"), key="other") == ["MISS", "MISS"]


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "y"}]},
        {"options": {"temperature": 0.5}},
        {"options": {"num_predict": 5}},
        {"options": {"seed": 1}},
        {"options": {"num_ctx": 2048}},
        {"format": "json"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"truncate": False},
        {"unknown_to_us": 1},
        {"model": "qwen3:8b"},
        {"model": "qwen3:8b", "think": False},
    ],
    ids=str,
)
async def test_t5_another_question_never_hits(home, other):
    assert await verdicts(home, chat(), {**chat(), **other}, chat()) == ["MISS", "MISS", "HIT"]


async def test_t5_another_image_never_hits(home):
    def seen(*images):
        return chat(model="seer", messages=[{"role": "user", "content": "x", "images": list(images)}])

    asked = [seen(), seen("QUJD"), seen("QUJE"), seen("QUJD", "QUJE"), seen("QUJD")]
    assert await verdicts(home, *asked) == ["MISS", "MISS", "MISS", "MISS", "HIT"]


@pytest.mark.parametrize(
    "same", [{"keep_alive": "1h"}, {"stream": True}, {"model": "llama3.2:latest"}, {"model": "LLAMA3.2"}], ids=str
)
async def test_the_same_question_in_other_words_hits(home, same):
    first = await home.ask("/api/chat", chat())
    answer = await home.ask("/api/chat", {**chat(), **same})
    assert (first.cache, answer.cache) == ("MISS", "HIT")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert {line["model"] for line in lines} == {same.get("model", MODEL)}
    text = "".join(line["message"]["content"] for line in lines)
    assert text == first.json()["message"]["content"]
    assert lines[-1]["eval_count"] == first.json()["eval_count"]


async def test_an_alias_is_called_as_it_was_asked_for(home):
    home.use(aliases=(("small", "llama3.2"),))
    await home.ask("/api/chat", chat())
    for stream in (True, False):
        answer = await home.ask("/api/chat", chat(model="small", stream=stream))
        assert answer.cache == "HIT"
        assert {json.loads(line)["model"] for line in answer.body.splitlines()} == {"small"}


async def test_t5_a_model_that_was_pulled_again_never_hits(home, fake):
    assert await verdicts(home, chat(), chat()) == ["MISS", "HIT"]
    before = home.runtime.fleet.states[1].models[f"{MODEL}:latest"].digest
    try:
        fake.change_digest(MODEL, DIGEST)
        await asyncio.sleep(home.runtime.configuration.probe_seconds)  # how long nobody may notice
        assert await verdicts(home, chat(), chat()) == ["MISS", "HIT"]
        assert home.runtime.fleet.states[1].models[f"{MODEL}:latest"].digest == DIGEST
        fake.change_digest(MODEL, "e" * 64)
        home.runtime.fleet.ask_again(1)  # as after a pull through the gateway
        assert await verdicts(home, chat(), chat()) == ["MISS", "HIT"]
    finally:
        fake.change_digest(MODEL, before)


async def test_t5_where_backends_have_different_weights_nothing_is_shared(home, fake, tmp_path):
    async with FakeOllama(models=[MODEL], slots=4) as other:
        other.change_digest(MODEL, DIGEST)
        async with house([fake, other], tmp_path / "two", f"{MODEL}:latest") as both:
            assert await verdicts(both, chat(), chat()) == ["BYPASS", "BYPASS"]


async def test_t5_an_answer_is_not_kept_whose_model_was_changed_while_it_was_made(home, fake):
    fake.faults(hang_after_chunks=1, tokens=4, path="/api/chat", model=MODEL)
    before = home.runtime.fleet.states[1].models[f"{MODEL}:latest"].digest
    asked = asyncio.ensure_future(home.ask("/api/chat", chat(stream=True)))
    await home.until(lambda: fake.gate.waiting == 1)
    try:
        fake.change_digest(MODEL, DIGEST)
        await home.runtime.fleet.refresh(tags=True)
        fake.release()
        assert (await asked).cache == "MISS"
        assert home.runtime.cache.counts.entries == 0
    finally:
        fake.change_digest(MODEL, before)


@pytest.mark.parametrize(
    "fault",
    [
        {"eof_after_chunks": 2},
        {"repetition_stop_after": 2},
        {"reset_after_chunks": 2},
        {"truncate_chunk": 2},
        {"error_after_chunks": 2},
        {"cut_after_bytes": 400},
        {"no_usage": True},
        {"usage": dict.fromkeys(("eval_count", "completion_tokens", "output_tokens"), -5)},
        {"usage": dict.fromkeys(("prompt_eval_count", "prompt_tokens", "input_tokens"), "many")},
        {"gzip": True},
        {"status": 500, "error": "x"},
        {"busy_503": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_t5_truncated_failed_and_uncertain_answers_are_never_kept(home, fake, fault, path):
    more = {"max_tokens": 50} if path == "/v1/messages" else {}
    for stream in (True, False):
        fake.clear_faults()
        fake.faults(path=path, model=MODEL, tokens=5, **fault)
        first = await home.ask(path, chat(f"{stream}", stream=stream, **more))
        kept = home.runtime.cache.counts.entries
        fake.clear_faults()
        again = await home.ask(path, chat(f"{stream}", stream=stream, **more))
        # In one piece some faults do not show, and the answer is whole.
        whole = first.status == 200 and home.ledger.of("outcome")[-2] == "ok" and not home.ledger.of("estimated")[-2]
        assert again.cache == ("HIT" if whole else "MISS"), (first.status, first.body[-300:])
        assert bool(kept) == whole
        assert not (whole and stream)
        home.runtime.cache.memory.drop_those(lambda entry: True)


async def test_an_answer_that_is_cut_by_its_own_cap_is_what_was_asked_for(home, fake):
    fake.faults(tokens=50, path="/api/chat", model=MODEL)
    asked = chat(options={"num_predict": 3})
    assert await verdicts(home, asked, asked) == ["MISS", "HIT"]


@pytest.mark.parametrize(
    ("said", "first", "then"),
    [
        ([b"no-cache"], "MISS", "HIT"),
        ([b"no-store"], "BYPASS", "MISS"),
        ([b"no-store", b"max-age=0"], "BYPASS", "MISS"),
        ([b"max-age=0", b"no-cache", b"private"], "MISS", "HIT"),
    ],
)
async def test_a_client_can_have_it_generated_anew(home, fake, said, first, then):
    headers = [(b"cache-control", line) for line in said]
    asked = len(calls(fake))
    assert await verdicts(home, chat(), headers=headers) == [first]
    assert await verdicts(home, chat()) == [then]
    assert await verdicts(home, chat(), headers=headers) == [first]
    assert len(calls(fake)) == asked + (2 if then == "HIT" else 3)


async def test_no_cache_replaces_what_is_kept(home, fake):
    fake.faults(tokens=3, path="/api/chat", model=MODEL)
    old = await home.ask("/api/chat", chat())
    fake.clear_faults()
    fake.faults(tokens=7, path="/api/chat", model=MODEL)
    new = await home.ask("/api/chat", chat(), headers=[(b"cache-control", b"no-cache")])
    assert old.body != new.body
    assert (await home.ask("/api/chat", chat())).body == new.body


async def test_a_key_without_a_policy_has_no_cache(home):
    home.add_key("plain", tenant_id=1, cache_policy="")
    answers = [await home.ask("/api/chat", chat(), key="plain") for _ in range(2)]
    assert not any("x-cache" in answer.headers for answer in answers)
    home.change_key(3, cache_policy="deterministic")
    asked = chat(options={"temperature": 0})
    assert await verdicts(home, chat(), chat(), asked, asked, key="plain") == ["BYPASS", "BYPASS", "MISS", "HIT"]


async def test_where_it_is_off_no_call_comes_near_it(home, monkeypatch):
    home.add_key("plain", tenant_id=1, cache_policy="off")
    monkeypatch.setattr(home.runtime, "cache", None)
    for stream in (True, False):
        answer = await home.ask("/api/chat", chat(stream=stream), key="plain")
        assert (answer.status, answer.cache) == (200, "")


async def test_loading_a_model_is_never_answered_from_what_is_kept(home, fake):
    body = {"model": MODEL, "messages": []}
    assert await verdicts(home, body, body) == ["BYPASS", "BYPASS"]


async def test_answers_grow_old(home, monkeypatch):
    now = home.runtime.now
    shift = 0
    monkeypatch.setattr(home.runtime, "now", lambda: now() + shift)
    await home.ask("/api/chat", chat())
    shift = 3590
    answer = await home.ask("/api/chat", chat())
    assert (answer.cache, 3590 <= int(answer.headers["age"]) <= 3600) == ("HIT", True)
    shift = 3601
    assert (await home.ask("/api/chat", chat())).cache == "MISS"
    home.use(cache_settings=Settings("", 5))
    shift += 6
    assert (await home.ask("/api/chat", chat())).cache == "MISS", "the admin's word holds at once"


@pytest.mark.parametrize(
    ("purge", "misses"),
    [
        ({"all": 1}, ["MISS", "MISS", "MISS"]),
        ({"tenants": {1: 1}}, ["MISS", "MISS", "HIT"]),
        ({"models": {"qwen3:8b": 1}}, ["HIT", "MISS", "HIT"]),
    ],
    ids=str,
)
async def test_what_is_purged_is_gone(home, purge, misses):
    asked = [(chat(), "one"), (chat(model="qwen3:8b"), "one"), (chat(), "two")]
    for body, key in asked:
        assert (await home.ask("/api/chat", body, key=key)).cache == "MISS"
    home.use(purges=NO_PURGES._replace(**purge))
    assert home.runtime.cache.counts.entries == misses.count("HIT")
    assert [(await home.ask("/api/chat", body, key=key)).cache for body, key in asked] == misses


async def test_an_answer_that_was_being_made_when_its_tenant_was_purged_is_gone_too(home, fake):
    fake.faults(hang_before_headers=True, path="/api/chat", model=MODEL)
    asked = asyncio.ensure_future(home.ask("/api/chat", chat()))
    await home.until(lambda: fake.gate.waiting == 1)
    home.use(purges=NO_PURGES._replace(tenants={1: 1}))
    fake.clear_faults()
    fake.release()
    assert (await asked).cache == "MISS"
    assert (await home.ask("/api/chat", chat())).cache == "MISS"


async def test_t5_what_a_tenant_shared_once_goes_with_its_purge_and_stays_away(home):
    home.use(cache_choices={1: ("", "shared"), 2: ("", "shared")})
    assert await verdicts(home, chat()) == ["MISS"]
    assert await verdicts(home, chat(), key="two") == ["HIT"]
    home.use(cache_choices={1: ("", "tenant"), 2: ("", "shared")})
    home.use(purges=NO_PURGES._replace(tenants={1: 1}))
    assert home.runtime.cache.counts.entries == 0
    assert await verdicts(home, chat(), key="two") == ["MISS"]


async def test_who_leaves_while_the_models_are_looked_up_leaves_nothing_behind(home, fake):
    fake.faults(hang_before_headers=True, path="/api/tags")
    asked = asyncio.ensure_future(home.runtime.fleet.refresh(tags=True))
    await home.until(lambda: fake.gate.waiting == 1)
    before = asyncio.all_tasks()
    asked.cancel()
    await asyncio.wait({asked})
    home.runtime.fleet.apply([])
    await home.until(lambda: not [task for task in before & asyncio.all_tasks() if "newer_than" in repr(task)])
    fake.release()


async def test_each_kept_answer_has_its_record_and_costs_what_the_setting_says(home):
    since = datetime(2020, 1, 1, tzinfo=UTC)
    price = PriceRow(1, "*", since, input_nano=10**9, output_nano=10**9, gpu_second_nano=10**9)
    home.use(prices=(price,))
    for charges in (False, True):
        home.use(cache_settings=Settings(charges=charges))
        await home.ask("/api/chat", chat(f"cost {charges}"))
        await home.ask("/api/chat", chat(f"cost {charges}"))
        made, kept = ({name: home.ledger.of(name)[at] for name in (
            "outcome", "prompt_tokens", "completion_tokens", "cost_nano", "decode_us", "backend", "attempts", "status",
            "model_digest", "estimated",
        )} for at in (-2, -1))  # fmt: skip
        assert (made["outcome"], kept["outcome"]) == ("ok", "cached")
        for name in ("prompt_tokens", "completion_tokens", "status", "model_digest", "estimated"):
            assert kept[name] == made[name]
        tokens = kept["prompt_tokens"] + kept["completion_tokens"]
        assert kept["cost_nano"] == (tokens * 1000 if charges else 0)
        assert made["cost_nano"] >= tokens * 1000
        assert (kept["decode_us"], kept["backend"], kept["attempts"]) == (0, "", 0)


async def test_limits_hold_for_kept_answers_too(fake, tmp_path):
    fake.reset()
    rule = limit(amount=2)
    async with house([fake], tmp_path, f"{MODEL}:latest", limits=[("key", None, None, 1, rule)]) as home:
        answers = [await home.ask("/api/chat", chat()) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.cache for answer in answers] == ["MISS", "HIT", ""]
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_call_that_cannot_be_recorded_gets_no_kept_answer(home):
    await home.ask("/api/chat", chat())
    home.ledger.refuses = True
    assert (await home.ask("/api/chat", chat())).status == 500


async def test_what_a_policy_of_a_model_changes_is_part_of_the_question(home):
    await home.ask("/api/chat", chat())
    home.use(policies=(Policy("*", max_output_tokens=7),))
    assert (await home.ask("/api/chat", chat())).cache == "MISS"


async def test_memory_is_bounded_and_the_longest_unused_go_first(fake, tmp_path):
    fake.reset()
    async with house([fake], tmp_path, f"{MODEL}:latest", cache_max_bytes=100_000) as home:
        fake.faults(tokens=50, path="/api/chat", model=MODEL)
        await home.ask("/api/chat", chat("often", stream=True))
        for number in range(30):
            await home.ask("/api/chat", chat(f"{number}", stream=True))
            assert (await home.ask("/api/chat", chat("often", stream=True))).cache == "HIT"
            assert home.runtime.cache.counts.bytes <= 100_000
        counts = home.runtime.cache.counts
        assert counts.evictions > 10
        assert (await home.ask("/api/chat", chat("0", stream=True))).cache == "MISS"
        assert counts.entries == len(home.runtime.cache.memory._entries)
        assert counts.bytes == sum(entry.size for entry in home.runtime.cache.memory._entries.values())


async def test_what_was_done_is_counted_for_each_tenant(home):
    home.runtime.cache.take_use()
    asked = chat("counted")
    await verdicts(home, asked, asked, asked)
    await verdicts(home, {"model": MODEL, "messages": []}, key="two")
    use = home.runtime.cache.take_use()
    assert (use[1][HITS], use[1][MISSES], use[1][BYPASSED]) == (2, 1, 0)
    assert (use[2][HITS], use[2][BYPASSED]) == (0, 1)
    assert use[1][5] == 2 * sum(home.ledger.of(name)[0] for name in ("prompt_tokens", "completion_tokens"))
    assert home.runtime.cache.take_use() == {}
