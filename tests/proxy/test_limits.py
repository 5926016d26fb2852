"""Rows U6, U7, U9: reserve, settle, release; windows that roll, windows of the calendar. In memory and in Redis."""

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from proxy.errors import TooManyRequests
from proxy.limits import Amounts, MemoryLimits, RedisLimits, Rule, memory
from proxy.limits.rules import PARTS, calendar_window
from tests.redis_server import RedisServer


class Clock:
    def __init__(self, now=1_800_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


def rule(metric="requests", window="seconds", amount=10, seconds=60, **fields):
    return Rule(
        **{
            "id": 1,
            "metric": metric,
            "window": window,
            "seconds": seconds if window == "seconds" else 0,
            "amount": amount,
            "enforced": True,
            "model": "",
            "per_address": False,
            "subject": "key x",
            **fields,
        }
    )


CONCURRENT = {"metric": "concurrent", "window": "none"}


class InMemory:
    """MemoryLimits with the manners of RedisLimits."""

    def __init__(self, zone, clock):
        self.engine = MemoryLimits(zone, clock)

    async def reserve(self, *asked):
        return self.engine.reserve(*asked)

    async def held(self):
        return self.engine.held

    async def total(self, rule, address):
        return self.engine.total(rule, address)

    def __getattr__(self, name):
        return getattr(self.engine, name)


class InRedis(RedisLimits):
    async def held(self):
        await self.expire()
        return await super().held()


async def connected(limits):
    """Started, and usable (again)."""
    if limits._task is None:
        limits.start()
    while not limits.usable:
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer().start()
    yield server
    server.remove()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def make_limits(request, clock):
    """The engines, each empty: make_limits(zone)."""
    made = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.flush()

    async def make(zone="UTC"):
        if request.param == "memory":
            return InMemory(zone, clock)
        limits = InRedis(server.url, zone, clock, lease_seconds=10**9, patience=30)
        made.append(limits)
        await connected(limits)
        return limits

    yield make
    for limits in made:
        await limits.close()


@pytest.fixture
async def limits(make_limits):
    return await make_limits()


numbers = iter(range(10**9))
# As the keys of a snapshot do: one tuple for the same rules, by which an engine knows them again.
_tuples = {}


async def reserve(limits, *rules, tokens=0, cost=0, model="m:latest", address="10.0.0.1"):
    rules = _tuples.setdefault(rules, rules)
    return await limits.reserve(f"call-{next(numbers)}", rules, model, address, Amounts(tokens, cost))


def know(limits, recorded):
    getattr(limits, "engine", limits).know(recorded)


async def totals(limits, *rules, address="10.0.0.1"):
    return [await limits.total(rule, address) for rule in rules]


async def refusal(limits, *rules, **call):
    with pytest.raises(TooManyRequests) as caught:
        await reserve(limits, *rules, **call)
    return caught.value


# Exactly so many


@pytest.mark.parametrize(
    ("limit", "tokens"),
    [
        (rule(amount=10), 0),
        (rule(window="day", amount=10), 0),
        (rule(**CONCURRENT, amount=10), 0),
        (rule("tokens", amount=1000), 100),
        (rule("tokens", "month", amount=1099), 100),
    ],
)
async def test_u6_of_200_at_once_exactly_10_get_in(limits, limit, tokens):
    admitted = []

    async def call():
        try:
            admitted.append(await reserve(limits, limit, tokens=tokens))
        except TooManyRequests:
            return
        await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(200):
            tasks.create_task(call())
    assert len(admitted) == 10


async def test_u6_all_limits_are_held_or_none(limits):
    wide, narrow = rule(amount=100), rule(id=2, amount=1)
    await reserve(limits, wide, narrow)
    for _ in range(5):
        await refusal(limits, wide, narrow)
    assert await totals(limits, wide, narrow) == [1, 1]


# Settle and release


async def test_u6_what_was_estimated_is_replaced_by_what_was_used(limits):
    limit = rule("tokens", amount=1000)
    reservation = await reserve(limits, limit, tokens=900)
    await refusal(limits, limit, tokens=200)
    limits.settle(reservation, Amounts(50))
    assert await totals(limits, limit) == [50]
    await reserve(limits, limit, tokens=950)
    await refusal(limits, limit, tokens=1)


async def test_u6_more_than_was_estimated_counts_as_well(limits):
    limit = rule("tokens", amount=100)
    limits.settle(await reserve(limits, limit, tokens=10), Amounts(500))
    assert await totals(limits, limit) == [500]
    await refusal(limits, limit, tokens=1)


@pytest.mark.parametrize("end", ["settle", "release"])
async def test_u6_a_second_end_of_a_call_changes_nothing(limits, end):
    rules = rule("tokens", amount=100), rule(id=2, **CONCURRENT)
    reservation = await reserve(limits, *rules, tokens=30)
    if end == "settle":
        limits.settle(reservation, Amounts(30))
    else:
        limits.release(reservation)
    before = await totals(limits, *rules)
    limits.settle(reservation, Amounts(99))
    limits.release(reservation)
    assert await totals(limits, *rules) == before == ([30, 0] if end == "settle" else [0, 0])


async def test_u6_a_settled_call_stays_a_request_but_no_concurrent_one(limits):
    rules = rule(), rule(id=2, **CONCURRENT)
    limits.settle(await reserve(limits, *rules), Amounts())
    assert await totals(limits, *rules) == [1, 0]


async def test_u6_cost_is_counted_in_its_own_unit(limits):
    limit = rule("cost", "month", amount=1_000_000_000)
    limits.settle(await reserve(limits, limit, tokens=5, cost=700_000_000), Amounts(5, 300_000_000))
    await reserve(limits, limit, cost=700_000_000)
    assert (await refusal(limits, limit, cost=1)).code == "budget_cost"


async def test_u6_a_limit_of_one_model_is_for_that_model(limits):
    limit = rule(model="big:latest", amount=1)
    for _ in range(3):
        await reserve(limits, limit, model="m:latest")
    await reserve(limits, limit, model="big:latest")
    await refusal(limits, limit, model="big:latest")


async def test_u6_a_shadow_counts_and_never_refuses(limits):
    for _ in range(20):
        await reserve(limits, rule(enforced=False))
    assert await totals(limits, rule()) == [20]


async def test_u6_each_address_has_a_counter_of_its_own(limits):
    limit = rule(per_address=True, amount=1)
    await reserve(limits, limit, address="")
    await reserve(limits, limit, address="10.0.0.1")
    await reserve(limits, limit, address="10.0.0.2")
    await refusal(limits, limit, address="10.0.0.1")


async def test_u6_each_key_under_a_default_has_a_counter_of_its_own(limits):
    await reserve(limits, rule(amount=1, counted_for="aaaaaaaa"))
    await reserve(limits, rule(amount=1, counted_for="bbbbbbbb"))
    await refusal(limits, rule(amount=1, counted_for="aaaaaaaa"))


async def test_u7_a_new_name_of_its_owner_does_not_refill_a_budget(limits):
    await reserve(limits, rule("tokens", "month", amount=100, subject="the tenant acme"), tokens=100)
    await refusal(limits, rule("tokens", "month", amount=100, subject="the tenant Acme Ltd"), tokens=1)


@pytest.mark.parametrize(
    "changed", [rule("requests", "day", amount=100), rule("tokens", "hour", amount=100), rule("tokens", amount=100)]
)
async def test_u7_a_limit_of_another_kind_does_not_inherit_what_it_cannot_read(limits, clock, changed):
    """A calendar count that became part of a rolling window would never leave it."""
    await reserve(limits, rule("tokens", "day", amount=100), tokens=100)
    await reserve(limits, changed, tokens=60)


# Windows that roll


async def test_u6_a_rolling_window_gives_back_what_has_left_it_and_not_before(limits, clock):
    limit = rule(amount=2, seconds=60)
    await reserve(limits, limit)
    clock.now += 30
    await reserve(limits, limit)
    clock.now += 29.9
    await refusal(limits, limit)
    clock.now += 1 + 60 / PARTS
    await reserve(limits, limit)
    await refusal(limits, limit)


@pytest.mark.parametrize("window", ["seconds", "minute", "hour", "day", "month"])
@pytest.mark.parametrize("offset", [0, 0.25, 17])
async def test_u6_after_retry_after_it_fits(limits, clock, window, offset):
    clock.now += offset
    limit = rule("tokens", window, amount=100, seconds=45)
    await reserve(limits, limit, tokens=60)
    clock.now += 3.5
    await reserve(limits, limit, tokens=40)
    refused = await refusal(limits, limit, tokens=50)
    clock.now += -(-refused.retry_after // 1)
    await reserve(limits, limit, tokens=50)


async def test_u6_what_can_never_fit_says_so(limits):
    limit = rule("tokens", amount=10)
    assert (await refusal(limits, limit, tokens=11)).headers[b"x-should-retry"] == b"false"
    await reserve(limits, limit, tokens=10)
    assert b"x-should-retry" not in (await refusal(limits, limit, tokens=10)).headers


async def test_u6_of_several_limits_that_are_full_the_one_is_named_that_lasts_longest(limits, clock):
    """Else a client would wait a second, in vain, before it is told of the month."""
    short, month, never = rule(amount=1, seconds=5), rule("tokens", "month", id=2, amount=10), rule("cost", id=3)
    await reserve(limits, short, month, tokens=10)
    for rules in ((short, month), (month, short)):
        refused = await refusal(limits, *rules, tokens=1)
        assert refused.code == "limit_tokens"
        assert refused.retry_after > 60
    assert (await refusal(limits, short, month, never, tokens=1, cost=11)).headers[b"x-should-retry"] == b"false"


async def test_u6_a_refusal_says_which_limit_what_is_left_and_when(limits):
    limit = rule("tokens", amount=100, seconds=30, subject="the tenant acme")
    await reserve(limits, limit, tokens=70)
    refused = await refusal(limits, limit, tokens=31)
    assert (refused.status, refused.code) == (429, "limit_tokens")
    for part in ("100 tokens per 30 s for the tenant acme", "30 left", "needs 31", "Try again in"):
        assert part in refused.message
    assert 1 <= refused.retry_after <= 31


async def test_u6_headers_tell_of_the_tightest_limit_of_each_metric(limits, clock):
    rules = (
        rule(id=1, amount=100, seconds=30),
        rule(id=2, amount=4, seconds=60),
        rule("tokens", "hour", id=3, amount=1000),
        rule(**CONCURRENT, id=4, amount=5),
        rule("cost", "day", id=5, amount=0, enforced=False),
    )
    clock.now += 1800
    reservation = await reserve(limits, *rules, tokens=250)
    assert {name.decode(): value.decode() for name, value in reservation.headers(clock.now)} == {
        "x-ratelimit-limit-requests": "4",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "60s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": f"{3600 - clock.now % 3600:.0f}s",
        "x-ratelimit-limit-concurrent": "5",
        "x-ratelimit-remaining-concurrent": "4",
    }
    refused = await refusal(limits, rules[2], tokens=800)
    assert refused.headers[b"x-ratelimit-remaining-tokens"] == b"750"


async def test_u6_counters_that_are_dropped_meanwhile_take_nothing_along(clock):
    limits = MemoryLimits("UTC", clock)
    limits._tidy_above = 1
    rules = rule(**CONCURRENT, amount=5), rule(id=2, window="day", amount=5), rule("tokens", "day", id=3, amount=100)
    others = tuple(replace(each, id=each.id + 10) for each in rules)
    for number in range(4):
        first = limits.reserve(f"first {number}", rules, "m:latest", "", Amounts(20))
        limits._tidy_above = 1
        limits.settle(limits.reserve(f"other {number}", others, "m:latest", "", Amounts(0)), Amounts(3))
        limits.settle(first, Amounts(10))
        assert limits.held == {}
    assert [limits.total(each, "") for each in (*rules, *others)] == [0, 4, 40, 0, 4, 12]


@pytest.mark.parametrize("window", ["seconds", "minute"])
async def test_u6_a_call_that_outlives_its_window_settles_into_nothing(limits, clock, window):
    limit = rule("tokens", window, amount=100, seconds=10)
    reservation = await reserve(limits, limit, tokens=80)
    clock.now += 120
    await reserve(limits, limit, tokens=100)
    limits.settle(reservation, Amounts(5))
    assert await totals(limits, limit) == [100]


@pytest.mark.parametrize("window", ["seconds", "minute", "none"])
async def test_u6_nothing_leaks_whatever_happens(limits, clock, window):
    """Random calls beside a slow and obvious account of them."""
    rng = random.Random(f"leaks {window}")
    metric = "concurrent" if window == "none" else "tokens"
    limit = rule(metric, window, amount=1000, seconds=30)
    running, ended = [], []  # (time of admission, amount, reservation), (time of admission, amount)

    def counts(when):
        if window == "none":
            return True
        if window == "minute":
            return when // 60 == clock.now // 60
        part = 30 / PARTS
        return (when // part + 1) * part > clock.now - 30

    for _ in range(4000 if isinstance(limits, InMemory) else 800):
        clock.now += rng.choice((0, 0, 0.1, 1, 5, 40, 200))
        if running and rng.random() < 0.5:
            when, _, reservation = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.3:
                limits.release(reservation)
            else:
                actual = rng.randint(0, 150)
                limits.settle(reservation, Amounts(actual))
                if window != "none":
                    ended.append((when, actual))
        else:
            tokens = rng.randint(1, 100)
            amount = 1 if window == "none" else tokens
            account = sum(held for when, held, _ in running if counts(when))
            account += sum(held for when, held in ended if counts(when))
            try:
                running.append((clock.now, amount, await reserve(limits, limit, tokens=tokens)))
                assert account + amount <= 1000
            except TooManyRequests:
                assert account + amount > 1000
    for _, _, reservation in running:
        limits.release(reservation)
    assert await limits.held() == {}
    clock.now += 3600
    await reserve(limits, rule(metric, window, amount=1000, seconds=30), tokens=1000)


async def test_u6_counters_of_those_who_left_are_dropped(clock, monkeypatch):
    monkeypatch.setattr(memory, "TIDY_ABOVE", 100)
    limits = InMemory("UTC", clock)
    rules = [rule(per_address=True), rule("tokens", "minute", per_address=True, id=2)]
    rules.append(rule(**CONCURRENT, per_address=True, id=3))
    kept = await reserve(limits, *rules, tokens=1, address="10.9.9.9")
    for number in range(2000):
        limits.settle(await reserve(limits, *rules, tokens=1, address=f"10.0.0.{number}"), Amounts(1))
        clock.now += 1
    assert len(limits.counters) < 500
    limits.settle(kept, Amounts(1))
    assert all(counter.total >= 0 for counter in limits.counters.values())


# Windows of the calendar

ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe"),
    *("Africa/Cairo", "America/Havana", "Asia/Beirut", "Pacific/Apia", "Atlantic/Azores", "America/Santiago"),
]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Africa/Cairo", "2024-04-26", 23),  # has no midnight
        ("America/Havana", "2025-11-02", 25),  # has two
        ("UTC", "2028-02-29", 24),
    ],
)
def test_u9_days_have_as_many_hours_as_their_zone_says(zone, day, hours):
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(zone))
    start, end = calendar_window("day", zone, int(noon.timestamp() // 60))
    assert (end - start) / 3600 == hours


@pytest.mark.parametrize("zone", ZONES)
def test_u9_a_window_holds_the_moments_of_its_own_local_day_or_month(zone):
    """Every quarter of an hour around the days on which clocks change."""
    here = ZoneInfo(zone)
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    offsets = [moment]
    while moment.year < 2026:
        later = moment + timedelta(days=1)
        if moment.astimezone(here).utcoffset() != later.astimezone(here).utcoffset() or later.day == 1:
            offsets.append(moment)
        moment = later
    for base in offsets:
        for quarter in range(-96, 2 * 96):
            epoch = (base + timedelta(minutes=15 * quarter)).timestamp()
            local = datetime.fromtimestamp(epoch, here)
            for window, shape in (("minute", "%F %R"), ("hour", "%F %H"), ("day", "%F"), ("month", "%Y-%m")):
                start, end = calendar_window(window, zone, int(epoch // 60))
                assert start <= epoch < end, (window, local)
                if window in ("day", "month"):
                    first = datetime.fromtimestamp(start, here)
                    last = datetime.fromtimestamp(end - 1, here)
                    before = datetime.fromtimestamp(start - 1, here)
                    assert first.strftime(shape) == last.strftime(shape) == local.strftime(shape), local
                    assert before.strftime(shape) != local.strftime(shape), local


async def test_u9_a_call_belongs_to_the_day_on_which_it_was_admitted(make_limits, clock):
    limits = await make_limits("Europe/Berlin")
    clock.now = datetime(2026, 3, 28, 22, 59, 50, tzinfo=UTC).timestamp()  # 23:59:50 before the short day
    limit = rule("tokens", "day", amount=100)
    reservation = await reserve(limits, limit, tokens=90)
    await refusal(limits, limit, tokens=20)
    clock.now += 20
    await reserve(limits, limit, tokens=100)
    limits.settle(reservation, Amounts(1))
    assert await totals(limits, limit) == [100]
    clock.now = datetime(2026, 3, 29, 21, 59, 59, tzinfo=UTC).timestamp()  # 23:59:59 of 23 hours
    await refusal(limits, limit, tokens=1)
    clock.now += 1
    await reserve(limits, limit, tokens=100)


async def test_u7_a_budget_begins_with_what_the_rollups_know(limits, clock):
    """After a restart, or with a Redis that lost everything; never less than that."""
    limit = rule("cost", "month", amount=100)
    know(limits, {limit.window_at(clock.now, "", "UTC").key: 60})
    running = await reserve(limits, limit, cost=30)
    assert await totals(limits, limit) == [90]
    know(limits, {limit.window_at(clock.now, "", "UTC").key: 65})
    assert (await refusal(limits, limit, cost=10)).code == "budget_cost"
    limits.settle(running, Amounts(0, 5))
    assert await totals(limits, limit) == [70]
    await reserve(limits, limit, cost=30)


@pytest.mark.parametrize("step", [-3600, -7, 7, 3600])
async def test_u9_a_clock_that_was_set_loses_nothing_that_is_in_the_window(limits, clock, step):
    limit = rule("tokens", amount=100, seconds=10_000)
    running = [await reserve(limits, limit, tokens=30)]
    clock.now += step
    running.append(await reserve(limits, limit, tokens=30))
    await refusal(limits, limit, tokens=60)
    for reservation in running:
        limits.settle(reservation, Amounts(1))
    assert await totals(limits, limit) == [2]
    assert await limits.held() == {}
    clock.now += 30_000
    await reserve(limits, limit, tokens=100)
