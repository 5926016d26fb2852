"""When a backend is left alone, and for how long. Time is a number here, but for the calls at the end."""

import asyncio
import random
import time

import pytest

from proxy.fake_ollama import FakeOllama
from proxy.fleet.breaker import FAILURES_TO_OPEN, MAX_OPEN_SECONDS, OPEN_SECONDS, Breaker
from tests.cache.house import house


@pytest.fixture
def breaker():
    return Breaker(jitter=random.Random(1))


def fail_until_open(breaker, now=0.0):
    for _ in range(FAILURES_TO_OPEN):
        breaker.begin(now)
        opened = breaker.failed(now)
    return opened


def test_b12_five_faults_in_a_row_open_it_and_four_do_not(breaker):
    assert [breaker.failed(0.0) for _ in range(5)] == [False, False, False, False, True]
    assert breaker.is_open(0.1)


def test_b12_a_success_between_starts_the_count_anew(breaker):
    for _ in range(10):
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open(0.0)


def test_b12_it_stays_away_for_thirty_seconds_with_jitter(breaker):
    fail_until_open(breaker, 100.0)
    assert 0.9 * OPEN_SECONDS <= breaker.open_until - 100 <= 1.1 * OPEN_SECONDS
    assert breaker.is_open(breaker.open_until - 0.01)
    assert not breaker.is_open(breaker.open_until)


def test_b12_half_open_lets_one_call_decide(breaker):
    fail_until_open(breaker)
    now = breaker.open_until + 1
    assert not breaker.is_open(now)
    breaker.begin(now)
    assert breaker.is_open(now), "a second call must not be sent while the first one decides"
    breaker.succeeded()
    assert not breaker.is_open(now)


def test_b12_each_failed_return_lengthens_the_pause_up_to_a_bound(breaker):
    fail_until_open(breaker)
    pauses = []
    for _ in range(15):
        now = breaker.open_until
        breaker.begin(now)
        assert breaker.failed(now)
        pauses.append(breaker.open_until - now)
    for n, pause in enumerate(pauses, start=2):
        expected = min(OPEN_SECONDS * n, MAX_OPEN_SECONDS)
        assert 0.9 * expected <= pause <= 1.1 * expected


def test_b12_after_a_good_return_the_next_pause_is_short_again(breaker):
    fail_until_open(breaker)
    now = breaker.open_until
    breaker.begin(now)
    breaker.succeeded()
    fail_until_open(breaker, now)
    assert breaker.open_until - now <= 1.1 * OPEN_SECONDS


def test_b12_others_are_sent_as_soon_as_the_deciding_call_is_answered_and_a_break_later_opens_it_again(breaker):
    fail_until_open(breaker)
    now = breaker.open_until
    breaker.begin(now)
    breaker.answered()
    assert not breaker.is_open(now)
    assert not breaker.begin(now), "nothing is left to decide"
    assert breaker.failed(now)
    assert breaker.open_until - now >= 0.9 * 2 * OPEN_SECONDS
    now = breaker.open_until
    breaker.begin(now)
    breaker.answered()
    breaker.succeeded()
    assert not breaker.failed(now), "the count is at its beginning"


def test_b11_a_deciding_call_that_tells_nothing_leaves_the_decision_to_the_next(breaker):
    fail_until_open(breaker)
    now = breaker.open_until
    assert breaker.begin(now)
    assert not breaker.begin(now), "one call decides"
    breaker.withdrew()
    assert not breaker.is_open(now)
    assert breaker.begin(now)


def test_b12_faults_of_calls_that_were_under_way_do_not_lengthen_the_pause(breaker):
    fail_until_open(breaker)
    until = breaker.open_until
    assert not any(breaker.failed(1.0) for _ in range(20))
    assert breaker.open_until == until


def test_b12_pauses_differ_between_processes():
    untils = set()
    for seed in range(20):
        breaker = Breaker(jitter=random.Random(seed))
        fail_until_open(breaker)
        untils.add(round(breaker.open_until, 3))
    assert len(untils) == 20


MODEL = "llama3.2"


@pytest.fixture
async def fake():
    async with FakeOllama(models=[MODEL]) as made:
        yield made


@pytest.mark.parametrize("transport", ["wire", "httpx"])
@pytest.mark.parametrize("policy", ["off", "all"])  # "all": a call that others may join
async def test_b12_a_stream_that_decides_does_so_with_its_first_byte(tmp_path, fake, policy, transport):
    async with house([fake], tmp_path, f"{MODEL}:latest", policy=policy, transport=transport) as home:
        breaker = home.runtime.fleet.states[1].breaker
        for last in ({}, {"reset_after_chunks": 3}):
            fail_until_open(breaker)
            breaker.open_until = 0.001  # its pause is over
            fake.clear_faults()
            fake.faults(path="/api/chat", model=MODEL, tokens=6, hang_after_chunks=2, **last)
            body = {"model": MODEL, "messages": [{"role": "user", "content": f"{last}"}]}
            asking = asyncio.ensure_future(home.ask("/api/chat", body))
            await home.until(lambda: fake.gate.waiting == 1)
            await home.until(lambda: not breaker.open_until)
            assert not asking.done()
            fake.release()
            answer = await asking
            assert (b'"error"' in answer.body) is bool(last)
            assert breaker.is_open(time.monotonic()) is bool(last)


@pytest.mark.parametrize("transport", ["wire", "httpx"])
async def test_b12_a_deciding_call_that_is_refused_decides_nothing_good(tmp_path, fake, transport):
    async with house([fake], tmp_path, f"{MODEL}:latest", policy="off", transport=transport) as home:
        breaker = home.runtime.fleet.states[1].breaker
        fail_until_open(breaker)
        breaker.open_until = 0.001
        fake.faults(path="/api/chat", model=MODEL, load_error_500=True)
        answer = await home.ask("/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
        assert answer.status == 502
        assert breaker.is_open(time.monotonic())
