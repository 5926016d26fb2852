"""Calls that share one answer while it is made."""

import asyncio
import json

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tests.cache.house import house
from tests.live.seen import calls
from tests.proxy.rules import limit

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
TOKENS = 6
SAID = [{"role": "user", "content": "x"}]
BODIES = {
    "/api/chat": {"messages": SAID},
    "/api/generate": {"prompt": "x"},
    "/v1/chat/completions": {"messages": SAID},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": SAID, "max_tokens": 99},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, "nomic-embed-text"], slots=200) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def home(fake, tmp_path):
    fake.reset()
    fake.faults(path="/api/*", tokens=TOKENS, model=MODEL)
    fake.faults(path="/v1/*", tokens=TOKENS, model=MODEL)
    async with house([fake], tmp_path, f"{MODEL}:latest") as made:
        yield made


def body(path, number=0, **more):
    made = json.loads(json.dumps({"model": MODEL, **BODIES[path]}).replace('"x"', f'"question {number}"'))
    return {**made, **more}


async def test_a_hundred_identical_streams_at_once_are_one_call_upstream(home, fake):
    fake.clear_faults()
    fake.faults(tokens=40, slow_first_byte=0.2, path="/api/chat", model=MODEL)
    answers = await asyncio.gather(*(home.ask("/api/chat", body("/api/chat")) for _ in range(100)))
    assert len(calls(fake)) == 1
    assert {answer.body for answer in answers} == {answers[0].body}
    assert answers[0].body.count(b"\n") == 41
    assert sorted(answer.cache for answer in answers) == ["COALESCED"] * 99 + ["MISS"]
    assert sorted(home.ledger.of("outcome")) == ["coalesced"] * 99 + ["ok"]
    assert home.ledger.of("completion_tokens") == [40] * 100
    assert not any(home.ledger.of("estimated"))
    assert sum(1 for decode in home.ledger.of("decode_us") if decode) == 1, "one call used the GPU"
    assert len(set(home.ledger.of("id"))) == 100
    assert not home.runtime.calls
    assert not len(home.runtime.cache.flights)
    again = await home.ask("/api/chat", body("/api/chat"))
    assert (again.cache, again.body) == ("HIT", answers[0].body)


@pytest.mark.parametrize("path", BODIES)
async def test_wherever_the_leader_leaves_the_followers_get_all_of_it(home, fake, path):
    for cut in range(TOKENS + 1):
        fake.clear_faults()
        # 0: before there is a head.
        hangs = {"hang_after_chunks": cut} if cut else {"hang_before_headers": True}
        fake.faults(tokens=TOKENS, path=path, model=MODEL, **hangs)
        asked, leaves = len(calls(fake)), asyncio.Event()
        leader = asyncio.ensure_future(home.ask(path, body(path, cut, stream=True), leaves=leaves))
        await home.until_joined(1)
        followers = [asyncio.ensure_future(home.ask(path, body(path, cut, stream=True))) for _ in range(3)]
        await home.until_joined(4)
        await home.until(lambda: fake.gate.waiting == 1)
        leaves.set()
        left = await leader
        assert not left.ended
        fake.release()
        answers = await asyncio.gather(*followers)
        assert len(calls(fake)) == asked + 1, f"cut after {cut}"
        for answer in answers:
            assert answer.ended
            assert answer.body == answers[0].body
            assert answer.body.startswith(left.body)
        assert home.ledger.of("outcome")[-4:] == ["cancelled", "ok", "coalesced", "coalesced"]
        assert home.ledger.of("completion_tokens")[-3:] == [TOKENS] * 3
        again = await home.ask(path, body(path, cut, stream=True))
        assert (again.cache, again.body) == ("HIT", answers[0].body)
    assert fake.counts()["generations_disconnected"] == 0


async def test_a_leader_that_leaves_alone_ends_the_work_at_once(home, fake):
    fake.clear_faults()
    fake.faults(hang_after_chunks=2, path="/api/chat", model=MODEL)
    leaves = asyncio.Event()
    asked = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), leaves=leaves))
    await home.until(lambda: fake.gate.waiting == 1)
    leaves.set()
    assert not (await asked).ended
    await fake.saw_disconnect(timeout=20)
    assert home.ledger.of("outcome") == ["cancelled"]
    assert home.ledger.of("backend") == ["b1"]
    assert home.ledger.of("completion_tokens") == [2]
    assert home.ledger.of("estimated") == [True]
    await home.until(lambda: not home.runtime.fleet.states[1].total_in_flight)
    assert not len(home.runtime.cache.flights)


async def test_the_work_ends_with_the_last_of_several(home, fake):
    fake.clear_faults()
    fake.faults(hang_after_chunks=2, path="/api/chat", model=MODEL)
    leaving = [asyncio.Event() for _ in range(3)]
    asked = [asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), leaves=leaves)) for leaves in leaving]
    await home.until_joined(3)
    await home.until(lambda: fake.gate.waiting == 1)
    for leaves, asking in zip(leaving, asked, strict=True):
        assert fake.counts()["generations_disconnected"] == 0
        leaves.set()
        await asking
    await fake.saw_disconnect(timeout=20)
    assert len(calls(fake)) == 1
    assert home.ledger.of("outcome") == ["cancelled"] * 3
    assert home.ledger.of("attempts") == [0, 0, 1], "the last one is who it was made for"


async def test_a_late_follower_gets_what_was_sent_before_first(home, fake):
    fake.clear_faults()
    fake.faults(hang_after_chunks=3, tokens=TOKENS, path="/api/chat", model=MODEL)
    started = asyncio.Event()
    leader = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), started=started))
    await started.wait()
    await home.until(lambda: fake.gate.waiting == 1)
    seen = []

    async def note(answer):
        seen.append(answer.body.count(b"\n"))

    follower = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), paces=note))
    await home.until(lambda: seen and seen[-1] == 3)
    fake.release()
    one, other = await leader, await follower
    assert one.body == other.body
    assert one.body.count(b"\n") == TOKENS + 1


async def test_a_slow_follower_holds_nobody_up_and_memory_stays_bounded(home, fake, monkeypatch):
    monkeypatch.setattr("proxy.cache.coalescing.MAX_BEHIND", 20_000)
    monkeypatch.setattr(home.runtime.cache, "room_for_flight", lambda most: 5_000)
    fake.clear_faults()
    fake.faults(tokens=600, hang_after_chunks=2, path="/api/chat", model=MODEL)
    released = asyncio.Event()

    async def dawdle(answer):
        if answer.chunks:
            await released.wait()

    slow = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), paces=dawdle))
    asked = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat")))
    await home.until_joined(2)
    await home.until(lambda: fake.gate.waiting == 1)
    fake.release()
    quick = await asked
    assert quick.body.count(b"\n") == 601
    assert not slow.done()
    released.set()
    lagging = await slow
    last = json.loads(lagging.body.rstrip(b"\n").split(b"\n")[-1])
    assert "reads too slowly" in last["error"]
    assert home.runtime.cache.counts.entries == 0, "of an answer that was not kept whole"


async def test_a_client_alone_sets_the_pace_of_its_backend(home, fake, monkeypatch):
    monkeypatch.setattr("proxy.cache.coalescing.HIGH_WATER", 2_000)
    fake.clear_faults()
    fake.faults(tokens=3000, path="/api/chat", model=MODEL)
    gate = asyncio.Event()

    async def wait(answer):
        if len(answer.chunks) == 1:
            await gate.wait()

    asked = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), paces=wait))
    await home.until(lambda: len(home.runtime.cache.flights) and next(iter(home.runtime.cache.flights)).size > 2_000)
    for _ in range(50):
        await asyncio.sleep(0.002)
    (flight,) = home.runtime.cache.flights
    assert flight.size < 200_000, "it was read ahead of its client"
    gate.set()
    assert (await asked).body.count(b"\n") == 3001


async def test_a_unary_call_joins_a_stream_and_gets_it_in_one_piece(home, fake):
    fake.clear_faults()
    fake.faults(tokens=TOKENS, slow_first_byte=0.2, path="/api/chat", model=MODEL)
    stream, unary = await asyncio.gather(
        home.ask("/api/chat", body("/api/chat")), home.ask("/api/chat", body("/api/chat", stream=False))
    )
    assert len(calls(fake)) == 1
    lines = [json.loads(line) for line in stream.body.splitlines()]
    assert unary.json()["message"]["content"] == "".join(line["message"]["content"] for line in lines)
    assert unary.json()["eval_count"] == TOKENS
    assert int(unary.headers["content-length"]) == len(unary.body)
    assert unary.headers["content-type"].startswith("application/json")


async def test_unary_calls_whose_stream_broke_off_share_the_next_answer(home, fake):
    fake.clear_faults()
    fake.faults(hang_before_headers=True, eof_after_chunks=2, times=1, path="/api/chat", model=MODEL)
    leader = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat", stream=True)))
    await home.until(lambda: fake.gate.waiting == 1)
    unary = [asyncio.ensure_future(home.ask("/api/chat", body("/api/chat", stream=False))) for _ in range(20)]
    await home.until_joined(21)
    fake.release()
    assert b'"error"' in (await leader).body
    answers = await asyncio.gather(*unary)
    assert len(calls(fake)) == 2
    assert len({answer.body for answer in answers}) == 1
    assert sorted(answer.cache for answer in answers) == ["COALESCED"] * 19 + ["MISS"]
    assert sorted(home.ledger.of("outcome")) == ["coalesced"] * 19 + ["failed", "ok"]


@pytest.mark.parametrize(
    ("fault", "status", "outcome"),
    [
        ({"status": 500, "error": "broken"}, 502, "failed"),
        ({"status": 400, "error": "bad thing"}, 400, "failed"),
        ({"eof_after_chunks": 2}, 200, "failed"),
        ({"reset_after_chunks": 2}, 200, "failed"),
        ({"error_after_chunks": 2, "error": "boom"}, 200, "failed"),
    ],
    ids=["500", "400", "eof", "reset", "error"],
)
async def test_what_fails_fails_for_all_and_is_not_kept(home, fake, fault, status, outcome):
    fake.clear_faults()
    fake.faults(path="/api/chat", model=MODEL, tokens=TOKENS, slow_first_byte=0.1, **fault)
    answers = await asyncio.gather(*(home.ask("/api/chat", body("/api/chat")) for _ in range(3)))
    assert [answer.status for answer in answers] == [status] * 3
    assert [b'"error"' in answer.body for answer in answers] == [True] * 3
    assert home.ledger.of("outcome") == [outcome] * 3
    assert home.runtime.cache.counts.entries == 0
    assert not len(home.runtime.cache.flights)
    for answer, request_id in zip(answers, home.ledger.of("id"), strict=False):
        if "Our" in answer.body.decode():
            assert any(each in answer.body.decode() for each in home.ledger.of("id")), request_id
    fake.clear_faults()
    assert (await home.ask("/api/chat", body("/api/chat"))).cache == "MISS"


async def test_a_revoked_follower_is_cut_and_the_others_go_on(home, fake):
    home.add_key("revoked", tenant_id=1)
    fake.clear_faults()
    fake.faults(hang_after_chunks=2, tokens=TOKENS, path="/api/chat", model=MODEL)
    leader = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"), key="revoked"))
    await home.until(lambda: fake.gate.waiting == 1)
    follower = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat")))
    await home.until(lambda: home.runtime.cache.flights and len(next(iter(home.runtime.cache.flights)).listeners) == 2)
    home.change_key(3, revoked=True)
    cut = await leader
    assert "withdrawn" in json.loads(cut.body.splitlines()[-1])["error"]
    fake.release()
    whole = await follower
    assert whole.body.count(b"\n") == TOKENS + 1
    assert home.ledger.of("outcome") == ["cut", "ok"]
    assert fake.counts()["generations_disconnected"] == 0


async def test_cancel_ends_one_of_them(home, fake):
    fake.clear_faults()
    fake.faults(hang_after_chunks=2, tokens=TOKENS, path="/api/chat", model=MODEL)
    asked = [asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"))) for _ in range(2)]
    await home.until(lambda: fake.gate.waiting == 1 and len(home.runtime.calls) == 2)
    leader = min(home.runtime.calls, key=lambda call: call.started_at)
    assert home.runtime.board.cancel(leader.id, "somebody")
    await asked[0]
    fake.release()
    assert (await asked[1]).body.count(b"\n") == TOKENS + 1
    assert home.ledger.of("outcome") == ["cancelled", "ok"]


async def test_what_cannot_be_kept_is_answered_all_the_same(home, fake, monkeypatch):
    monkeypatch.setattr(home.runtime.cache, "put", None)
    fake.clear_faults()
    answer = await home.ask("/api/chat", body("/api/chat"))
    assert (answer.status, answer.ended, answer.cache) == (200, True, "MISS")
    assert home.ledger.of("outcome") == ["ok"]


async def test_each_settles_its_own_limits(fake, tmp_path):
    fake.reset()
    fake.faults(tokens=TOKENS, slow_first_byte=0.1, path="/api/chat", model=MODEL)
    rule = limit(metric="tokens", amount=10**6)
    async with house([fake], tmp_path, f"{MODEL}:latest", limits=[("key", None, None, 1, rule)]) as home:
        await asyncio.gather(*(home.ask("/api/chat", body("/api/chat")) for _ in range(3)))
        await home.ask("/api/chat", body("/api/chat"))
        (counter,) = home.runtime.limits.memory.counters.values()
        assert counter.held == 0
        tokens = sum(home.ledger.of("prompt_tokens")) + sum(home.ledger.of("completion_tokens"))
        assert counter.total == tokens
        assert sorted(home.ledger.of("outcome")) == ["cached", "coalesced", "coalesced", "ok"]


async def test_a_backend_that_is_silent_for_too_long_fails_all_who_wait(fake, tmp_path):
    fake.reset()
    fake.faults(hang_before_headers=True, path="/api/chat", model=MODEL)
    async with house([fake], tmp_path, f"{MODEL}:latest", first_byte_seconds=60) as home:
        asked = [asyncio.ensure_future(home.ask("/api/chat", body("/api/chat"))) for _ in range(2)]
        await home.until(lambda: fake.gate.waiting == 1)
        home.runtime.cache.sweep(asyncio.get_running_loop().time() + 10**6)
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [504, 504]
        assert home.ledger.of("outcome") == ["timeout"] * 2
    fake.release()


@pytest.mark.parametrize("policy", ["off", "all"])
@pytest.mark.parametrize(("seconds", "outcome"), [(0.0, "ok"), (1e-6, "timeout")])
async def test_a_call_may_take_so_long_in_all_and_as_long_as_it_takes_where_that_is_0(
    fake, tmp_path, policy, seconds, outcome
):
    fake.reset()
    fake.faults(tokens=TOKENS, hang_after_chunks=2, path="/api/chat", model=MODEL)
    async with house(
        [fake], tmp_path, f"{MODEL}:latest", policy=policy, total_seconds=seconds, metrics_enabled=False
    ) as home:
        asked = asyncio.ensure_future(home.ask("/api/chat", body("/api/chat")))
        await home.until(lambda: fake.gate.waiting == 1)
        home.runtime._sweep()
        fake.release()
        await asked
        assert home.ledger.of("outcome") == [outcome]
