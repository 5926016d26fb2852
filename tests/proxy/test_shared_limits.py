"""Rows U6, U7, S6: limits of several workers in one Redis; leases of workers that died; Redis that is away."""

import asyncio
import time
from contextlib import suppress

import pytest

from proxy.errors import TooManyRequests
from proxy.limits import Amounts, Limits, RedisLimits
from proxy.limits.connection import Connection, RedisAway
from proxy.limits.questions import KEPT_SECONDS
from tests.proxy.test_limits import CONCURRENT, Clock, connected, numbers, reserve, rule
from tests.redis_server import RedisServer


@pytest.fixture
def redis_server():
    server = RedisServer().start()
    yield server
    server.remove()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def worker(redis_server, clock):
    """worker(): another process' engine."""
    made = []

    async def make(**options):
        limits = RedisLimits(redis_server.url, "UTC", clock, **{"patience": 30, **options})
        await connected(limits)
        made.append(limits)
        return limits

    yield make
    for limits in made:
        await limits.close()


async def forget(limits):
    """As it does by itself three times in the time of a lease."""
    await limits._run("forget", ["ogw:counters"], [limits.clock(), 100])


def died(limits):
    """kill -9: it renews nothing, and tells no end."""
    limits._task.cancel()
    limits._connection.abort()


@pytest.mark.parametrize(
    ("limit", "tokens", "cost"),
    [
        (rule(amount=10), 0, 0),
        (rule("tokens", "month", amount=1099), 100, 0),
        (rule("cost", "day", amount=10_000), 0, 1000),
        (rule(**CONCURRENT, amount=10), 0, 0),
    ],
)
async def test_u6_of_200_at_once_over_4_workers_exactly_10_get_in(worker, limit, tokens, cost):
    workers = [await worker() for _ in range(4)]

    async def call(number):
        limits = workers[number % 4]
        try:
            return limits, await reserve(limits, limit, tokens=tokens, cost=cost)
        except TooManyRequests:
            return None

    admitted = [pair for pair in await asyncio.gather(*map(call, range(200))) if pair]
    assert len(admitted) == 10
    for limits, reservation in admitted:
        limits.settle(reservation, Amounts(1, 1))
    for limits in workers:
        await limits.held()  # what was sent before has been carried out
    assert await workers[0].held() == {}


async def test_u6_what_a_dead_worker_held_comes_back_with_its_lease(worker, clock):
    dead, alive = await worker(), await worker()
    rules = rule(**CONCURRENT, amount=1), rule("tokens", "day", id=2, amount=100), rule(id=3, amount=2, seconds=600)
    await reserve(dead, *rules, tokens=100)
    died(dead)
    clock.now += 29
    assert await alive.expire() == 0
    with pytest.raises(TooManyRequests):
        await reserve(alive, *rules, tokens=10)
    clock.now += 2
    assert await alive.expire() == 1
    assert await alive.held() == {}
    # The request was made, and stays counted.
    assert [await alive.total(limit, "") for limit in rules] == [0, 0, 1]
    await reserve(alive, *rules, tokens=100)


async def test_u6_the_lease_of_a_call_that_runs_is_renewed(worker, clock):
    busy, other = await worker(), await worker()
    limit = rule(**CONCURRENT, amount=1)
    reservation = await reserve(busy, limit)
    for _ in range(5):
        clock.now += 20
        await busy._beat()
        assert await other.expire() == 0
    busy.settle(reservation, Amounts())
    await busy.held()
    await reserve(other, limit)


async def test_u6_a_worker_that_was_stopped_for_long_settles_without_giving_back_twice(worker, clock):
    stopped, other = await worker(), await worker()
    limit = rule("tokens", "day", amount=100)
    reservation = await reserve(stopped, limit, tokens=60)
    clock.now += 40
    await other.expire()
    await reserve(other, limit, tokens=50)
    stopped.settle(reservation, Amounts(20))
    await stopped.held()
    assert await other.total(limit, "") == 70


@pytest.mark.parametrize("metric", ["requests", "tokens"])
async def test_u7_a_counter_that_is_full_from_the_start_ends_with_its_window_all_the_same(
    worker, redis_server, clock, metric
):
    limits = await worker()
    limit = rule(metric, "day", amount=100)
    window = limit.window_at(clock.now, "", "UTC")
    limits.know({window.key: 100})
    with pytest.raises(TooManyRequests):
        await reserve(limits, limit, tokens=1)
    with redis_server.client() as client:
        assert client.hget(f"ogw:limit:{window.key}", "total") == b"100"
        assert client.ttl(f"ogw:limit:{window.key}") > 0
        clock.now = window.ends + KEPT_SECONDS - 1
        await forget(limits)
        assert client.exists(f"ogw:limit:{window.key}")
        clock.now += 1
        await forget(limits)
        assert client.keys("ogw:*") == [b"ogw:holders"]


def both(server, clock):
    return Limits("UTC", clock, server.url)


async def call(limits, *rules, tokens=0):
    arguments = (f"call-{next(numbers)}", rules, "m:latest", "10.0.0.1", Amounts(tokens))
    return await limits.reserve_shared(*arguments) if limits.is_shared else limits.reserve(*arguments)


@pytest.mark.parametrize("trouble", ["kill", "pause", "flush", "restart"])
async def test_s6_without_redis_each_process_goes_on_by_itself_until_it_is_back(redis_server, clock, trouble):
    limits = both(redis_server, clock)
    limits.start()
    await connected(limits.shared)
    limit = rule(amount=100, seconds=60)
    before = await call(limits, limit)
    if trouble == "restart":
        redis_server.kill()
        redis_server.start()
    else:
        getattr(redis_server, trouble)()
        if trouble == "flush":
            with redis_server.client() as client:
                client.script_flush()
    waits = []
    for _ in range(30):
        began = time.monotonic()
        running = await call(limits, limit)
        limits.settle(running, Amounts(5))
        waits.append(time.monotonic() - began)
    print(
        f"{trouble}: the longest of 30 calls waited {max(waits) * 1000:.0f} ms, their median {sorted(waits)[15]:.4f} s"
    )
    # The first to ask waits its 50 ms; the next ones are not told to.
    assert sum(wait > 0.04 for wait in waits) <= 10
    limits.settle(before, Amounts(5))
    if trouble == "kill":
        redis_server.start()
    if trouble == "pause":
        redis_server.resume()
    await connected(limits.shared)
    again = await call(limits, limit)
    limits.settle(again, Amounts(1))
    assert await limits.shared.held() == {}
    assert limits.memory.held == {}
    await limits.close()


async def test_s6_a_budget_outlives_a_redis_that_lost_everything(redis_server, clock):
    limits = both(redis_server, clock)
    limits.start()
    await connected(limits.shared)
    limit = rule("tokens", "month", amount=100)
    limits.settle(await call(limits, limit, tokens=90), Amounts(90))
    limits.know({limit.window_at(clock.now, "", "UTC").key: 90})
    redis_server.kill()
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            await call(limits, limit, tokens=20)
    redis_server.start()
    await connected(limits.shared)
    with pytest.raises(TooManyRequests):
        await call(limits, limit, tokens=20)
    await limits.close()


async def test_s6_what_ended_while_redis_was_away_is_told_when_it_is_back(worker, redis_server):
    limits = await worker(patience=2)
    limit = rule("tokens", "day", amount=100)
    running = await reserve(limits, limit, tokens=80)
    redis_server.pause()
    with pytest.raises(RedisAway):
        await reserve(limits, limit, tokens=1)
    limits.settle(running, Amounts(7))
    redis_server.resume()
    await connected(limits)
    await limits.held()
    assert await limits.total(limit, "") == 7


async def test_s6_a_redis_that_was_never_there_hurts_nobody(clock):
    limits = Limits("UTC", clock, "redis://127.0.0.1:1/0")
    limits.start()
    await asyncio.sleep(0)
    reservation = await call(limits, rule())
    limits.settle(reservation, Amounts())
    await limits.close()


# What gets lost


async def again(limits, problem="gone"):
    """The connection is lost, and there again; the task that keeps it does that by itself, a moment later."""
    limits._lost(problem)
    await connected(limits)


MANY = rule(**CONCURRENT, amount=5), rule("tokens", "day", id=2, amount=1000), rule("tokens", id=3, amount=1000)


@pytest.mark.parametrize("lost", ["the counters", "who holds", "the list of counters", "all", "the scripts"])
async def test_s6_whatever_redis_evicts_nothing_stays_held_and_no_room_is_made_up(worker, redis_server, lost):
    limits, other = await worker(), await worker()
    running = [await reserve(limits, *MANY, tokens=10) for _ in range(3)]
    with redis_server.client() as client:
        keys = {
            "the counters": client.keys("ogw:limit:*"),
            "who holds": ["ogw:holders"],
            "the list of counters": ["ogw:counters"],
            "all": client.keys("ogw:*"),
            "the scripts": [],
        }[lost]
        if keys:
            client.delete(*keys)
        else:
            client.script_flush()
    if lost != "the scripts":
        running.append(await reserve(other, *MANY, tokens=10))  # makes anew what it needs
    for reservation in running[:2]:
        limits.settle(reservation, Amounts(1))
    await connected(limits)
    with suppress(RedisAway):  # by which it notices that Redis forgot it
        await limits._beat()
    await connected(limits)
    await connected(other)
    known = await other.held()
    assert all(amount > 0 for amount in known.values()), known
    for reservation in running[2:]:
        (other if reservation is running[-1] else limits).settle(reservation, Amounts(1))
    for each in (limits, other):
        await connected(each)
        await each._ask("PING")
    assert await other.held() == {}
    for _ in range(5):
        await reserve(other, MANY[0])
    with pytest.raises(TooManyRequests):
        await reserve(other, MANY[0])


async def test_s6_what_runs_is_held_again_in_a_redis_that_lost_everything(worker, redis_server):
    limits = await worker()
    limit = rule(**CONCURRENT, amount=3)
    running = [await reserve(limits, limit) for _ in range(3)]
    redis_server.flush()
    with pytest.raises(RedisAway):
        await limits._beat()
    await again(limits)
    with pytest.raises(TooManyRequests):
        await reserve(limits, limit)
    for reservation in running:
        limits.settle(reservation, Amounts())
    await limits._ask("PING")
    assert await limits.held() == {}


@pytest.mark.parametrize("told", ["before Redis stopped", "while it was stopped"])
async def test_u6_an_end_whose_confirmation_got_lost_counts_once(worker, redis_server, told):
    limits = await worker()
    # The last one is full: its end is told at once.
    rules = rule("tokens", "day", amount=1000), rule(id=2, amount=10), rule(**CONCURRENT, id=3, amount=1)
    reservation = await reserve(limits, *rules, tokens=100)
    if told == "while it was stopped":
        redis_server.pause()
    limits.settle(reservation, Amounts(30))
    if told == "before Redis stopped":
        with redis_server.client() as client:  # it was carried out, and the answer waits at our end of the socket
            while client.hget(f"ogw:limit:{reservation.held[0].window.key}", "total") != b"30":
                pass
    limits._lost("the connection broke")
    redis_server.resume()
    await connected(limits)
    await limits._ask("PING")
    assert await limits.held() == {}
    assert [await limits.total(limit, "") for limit in rules] == [30, 1, 0]
    assert limits._untold == []


async def test_u6_an_end_that_waits_to_be_told_is_not_lost_with_the_connection(worker):
    limits = await worker()
    rules = rule("tokens", "day", amount=1000), rule("cost", "day", id=2, amount=10)
    reservation = await reserve(limits, *rules, tokens=100)
    limits.settle(reservation, Amounts(30))
    assert len(limits._untold) == 1
    limits._lost("the connection broke")
    await connected(limits)
    await limits._ask("PING")
    assert [await limits.total(limit, "") for limit in rules] == [30, 0]
    assert limits._untold == []


@pytest.mark.parametrize(("amount", "waits"), [(39, False), (40, True)])
async def test_an_end_waits_for_what_is_sent_next_only_where_there_is_room(worker, amount, waits):
    limits = await worker()
    limit = rule("tokens", "day", amount=amount)
    limits.settle(await reserve(limits, limit, tokens=20), Amounts(7))
    assert bool(limits._untold) is waits
    other = await worker()
    async with asyncio.timeout(10):
        while await other.total(limit, "") != 7:  # this one sends nothing more by itself
            await asyncio.sleep(0.001)
    assert limits._untold == []


async def test_u6_who_runs_as_many_calls_as_may_run_begins_the_next_elsewhere_when_one_ends(worker):
    here, there = await worker(), await worker()
    limit = rule(**CONCURRENT, amount=10)
    for number in range(10):
        first = await reserve(here, limit)
        others = [await reserve(there, limit) for _ in range(9)]
        here.settle(first, Amounts())
        async with asyncio.timeout(10):
            while await there.total(limit, "") > 9:
                await asyncio.sleep(0)
        assert here._telling is None, number  # it did not wait
        others.append(await reserve(there, limit))
        for reservation in others:
            there.settle(reservation, Amounts())
        await there._ask("PING")


async def test_s6_a_connection_that_redis_does_not_let_in_is_closed(redis_server):
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
        try:
            wrong = redis_server.url.replace("redis://", "redis://:wrong@")
            for _ in range(5):
                with pytest.raises(RedisAway, match="WRONGPASS"):
                    await Connection.open(wrong, 30)
            async with asyncio.timeout(10):
                while len(client.client_list()) > 1:
                    await asyncio.sleep(0.01)
        finally:
            client.config_set("requirepass", "")


async def test_u6_a_reserve_whose_answer_got_lost_holds_nothing(worker, redis_server):
    limits = await worker()
    limit = rule("tokens", "day", amount=100)
    redis_server.pause()
    asking = asyncio.create_task(reserve(limits, limit, tokens=80))
    await asyncio.sleep(0)
    limits._lost("the connection broke")
    with pytest.raises(RedisAway):
        await asking
    redis_server.resume()  # and carries out what it still has in its socket
    await connected(limits)
    await limits._ask("PING")
    assert await limits.held() == {}
    assert await limits.total(limit, "") == 0


async def test_u10_clocks_of_workers_that_differ_end_no_lease(worker, redis_server, clock):
    """Each judges by how long it has heard nothing, not by what another's clock said."""
    here, there = await worker(), await worker()
    limit = rule(**CONCURRENT, amount=1)
    reservation = await reserve(here, limit)
    there.clock = lambda: clock.now + 86400
    for _ in range(3):
        clock.now += 20
        await here._beat()
        assert await there.expire() == 0
    with pytest.raises(TooManyRequests):
        await reserve(there, limit)
    here.settle(reservation, Amounts())


async def test_u10_no_counter_ends_by_the_clock_of_redis(worker, redis_server):
    """Which may be set. What it is told to forget by itself is a backstop, weeks away."""
    limits = await worker()
    await reserve(limits, *MANY, rule("requests", "minute", id=4), rule(id=5, seconds=1), tokens=10)
    with redis_server.client() as client:
        lives = {key: client.ttl(key) for key in client.keys("ogw:*")}
    assert len(lives) == 7
    assert all(seconds == -1 or seconds >= 40 * 86400 for seconds in lives.values()), lives


async def test_u7_a_redis_that_refuses_to_write_leaves_no_half_of_a_call(worker, redis_server):
    """Out of memory: a script is carried out as a whole, or not at all."""
    limits = await worker()
    running = await reserve(limits, *MANY, tokens=10)
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        before = {key: client.hgetall(key) for key in client.keys("ogw:limit:*")}
        with pytest.raises(RedisAway):
            await reserve(limits, *MANY, tokens=10)
        assert {key: client.hgetall(key) for key in client.keys("ogw:limit:*")} == before
        limits.settle(running, Amounts(7))
        client.config_set("maxmemory", 0)
    await connected(limits)
    await limits._ask("PING")
    assert await limits.held() == {}
    assert [await limits.total(limit, "") for limit in MANY] == [0, 7, 7]
