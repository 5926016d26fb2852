"""Rows U6, U7, U9, U10: limits in memory and in Redis beside a slow and obvious account, under any order of events.

LIMIT_EXAMPLES=2000 tries as many random orders, others each time.
"""

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.clock import SteadyClock
from proxy.errors import TooManyRequests
from proxy.limits import Amounts, MemoryLimits, RedisLimits, Rule
from proxy.limits.rules import PARTS
from tests.redis_server import RedisServer

EXAMPLES = int(os.environ.get("LIMIT_EXAMPLES", "0"))
LEASE = 30
ADDRESSES = ("10.0.0.1", "2001:db8::1")
MODELS = ("small:latest", "big:latest")
WORKERS = (0, 1)
# Zone and moment from which on days of 23, 24, 24.5 and 25 hours, month ends, a leap day, year ends are crossed.
BEGINNINGS = [
    ("Europe/Berlin", "2026-03-28T22:30"),
    ("Europe/Berlin", "2026-10-24T21:30"),
    ("America/New_York", "2026-11-01T03:59"),
    ("America/Havana", "2025-11-02T03:30"),
    ("Africa/Cairo", "2024-04-25T21:30"),
    ("Australia/Lord_Howe", "2026-04-04T12:45"),
    ("Asia/Kolkata", "2025-12-31T18:00"),
    ("Asia/Kathmandu", "2026-06-30T18:10"),
    ("UTC", "2028-02-28T23:59:30"),
]
STEPS = (0, 0, 0.05, 0.7, 1, 7, 29, 59, 61, 600, 1801, 3599, 3600, 10_000, 23 * 3600, 24 * 3600, 25 * 3600, 32 * 86400)
KINDS = [
    *(("requests", "seconds", seconds) for seconds in (1, 7, 60)),
    *(("tokens", "seconds", seconds) for seconds in (10, 3600)),
    *((metric, window, 0) for metric in ("requests", "tokens", "cost") for window in ("minute", "hour", "day")),
    *((metric, "month", 0) for metric in ("tokens", "cost")),
    ("concurrent", "none", 0),
]
AMOUNTS = st.sampled_from((0, 1, 2, 3, 5, 100, 250))


@dataclass
class Entry:
    """What one call counts for one limit."""

    limit: Rule
    when: float
    address: str
    amount: int
    estimated: int
    ceiling: float  # what the limit allowed when the call was let in

    def counter(self):
        limit = self.limit
        return limit.id, limit.metric, limit.window, limit.seconds, self.address if limit.per_address else ""


@dataclass(eq=False)
class Call:
    worker: int
    reservations: list
    entries: list[Entry]
    running: bool = True
    taken_for_dead: bool = False


def window_of(limit, when, zone):
    """A name of the window that holds a moment, by what a wall calendar would say."""
    local = datetime.fromtimestamp(when, ZoneInfo(zone))
    if limit.window == "minute":
        return when // 60
    if limit.window == "hour":
        offset = local.utcoffset().total_seconds()
        return (when + offset) // 3600, offset
    return local.strftime({"day": "%F", "month": "%Y-%m", "none": ""}[limit.window])


class BothEngines(RuleBasedStateMachine):
    """Two workers on Redis, and the engine of one process, are asked the same."""

    server: RedisServer
    loop: asyncio.AbstractEventLoop
    calls = Bundle("calls")

    def __init__(self):
        super().__init__()
        self.server.flush()
        self.wall = self.steady = 0.0
        self.made: list[Call] = []
        self.of_keys: dict[tuple[Rule, ...], tuple[Rule, ...]] = {}
        self.numbers = iter(range(10**9))
        self.workers = []

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @initialize(beginning=st.sampled_from(BEGINNINGS), kinds=st.lists(st.sampled_from(KINDS), min_size=4, max_size=4))
    def begin(self, beginning, kinds):
        self.zone, moment = beginning
        self.wall = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
        self.clock = SteadyClock(lambda: self.wall, lambda: self.steady)
        self.memory = MemoryLimits(self.zone, self.clock)
        self.workers = [self.connected() for _ in WORKERS]
        self.limits = [
            Rule(
                id=number, metric=metric, window=window, seconds=seconds, amount=3 if metric == "requests" else 100,
                enforced=True, model=MODELS[1] if number == 3 else "", per_address=number == 2, subject="key x",
            )
            for number, (metric, window, seconds) in enumerate(kinds)
        ]  # fmt: skip

    def connected(self):
        limits = RedisLimits(self.server.url, self.zone, self.clock, lease_seconds=LEASE, patience=30)
        self.run(limits._connect())
        self.run(limits._beat())
        return limits

    def teardown(self):
        try:
            if self.workers:
                self.all_ends()
        finally:
            for worker in self.workers:
                self.run(worker.close())

    def all_ends(self):
        for call in self.made:
            if call.running:
                self.end(call, Amounts(1, 1))
        assert self.memory.held == {}
        assert self.run(self.workers[0].held()) == {}
        self.look()
        self.steady += 40 * 86400
        self.beat()
        self.forget()
        with self.server.client() as client:
            assert client.keys("ogw:*") == [b"ogw:holders"]
        assert all(counter.is_idle(self.clock()) for counter in self.memory.counters.values())

    # What happens

    @rule(
        target=calls,
        worker=st.sampled_from(WORKERS),
        chosen=st.sets(st.integers(0, 3), min_size=1),
        tokens=st.integers(0, 60),
        model=st.sampled_from(MODELS),
        address=st.sampled_from(ADDRESSES),
    )
    def reserve(self, worker, chosen, tokens, model, address):
        now = self.clock()
        rules = tuple(self.limits[number] for number in sorted(chosen))
        rules = self.of_keys.setdefault(rules, rules)  # those of a key stay one object while none is changed
        applied = [limit for limit in rules if limit.model in ("", model)]
        estimate = Amounts(tokens, 2 * tokens)
        asked = (f"call-{next(self.numbers)}", rules, model, address, estimate)
        full = [limit for limit in applied if limit.enforced and not self.fits(limit, address, estimate)]
        answers = []
        for reserve in (self.memory.reserve, lambda *asked: self.run(self.workers[worker].reserve(*asked))):
            try:
                answers.append(reserve(*asked))
            except TooManyRequests as refused:
                answers.append(refused)
        mine, shared = answers
        if full:
            for refused in answers:
                assert isinstance(refused, TooManyRequests), (full, refused)
                assert any(self.says(refused.message, limit, address, estimate) for limit in full)
            assert (mine.message, mine.headers) == (shared.message, shared.headers)
            assert mine.retry_after == shared.retry_after >= 1
            return multiple()
        for reservation in answers:
            assert not isinstance(reservation, TooManyRequests), reservation
        assert [held.total for held in mine.held] == [held.total for held in shared.held]
        entries = []
        for limit in applied:
            needed = estimate.by_metric[limit.metric]
            ceiling = limit.amount if limit.enforced else float("inf")
            entries.append(Entry(limit, now, address, needed, needed, ceiling))
        call = Call(worker, answers, entries)
        self.made.append(call)
        return call

    @rule(call=consumes(calls), tokens=st.integers(0, 90))
    def settle(self, call, tokens):
        self.end(call, Amounts(tokens, 2 * tokens))

    @rule(call=consumes(calls))
    def release(self, call):
        # A call that was taken for dead counts as a request, whatever becomes of it.
        self.end(call, Amounts() if call.taken_for_dead else None)

    @rule(call=calls, tokens=st.integers(0, 90))
    def end_and_end_again(self, call, tokens):
        self.end(call, Amounts(tokens, tokens))
        self.tell_end(call, None)
        self.tell_end(call, Amounts(99, 99))

    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds):
        self.steady += seconds
        self.wall += seconds

    @rule(seconds=st.sampled_from((-86400 * 400, -7200, -61, 61, 7200, 86400 * 400)))
    def the_wall_clock_is_set(self, seconds):
        """It neither frees nor freezes a window: nobody looks at it again."""
        self.wall += seconds

    @rule(number=st.integers(0, 3), amount=AMOUNTS, enforced=st.booleans())
    def a_limit_changes(self, number, amount, enforced):
        self.limits[number] = self.changed(number, amount=amount, enforced=enforced)

    @rule(number=st.integers(0, 3), kind=st.sampled_from(KINDS))
    def a_limit_becomes_another(self, number, kind):
        metric, window, seconds = kind
        self.limits[number] = self.changed(number, metric=metric, window=window, seconds=seconds)

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_dies(self, worker):
        """What its calls hold comes back with its lease; requests stay counted."""
        dead, other = self.workers[worker], self.workers[1 - worker]
        self.beat()
        dead._connection.abort()
        lost = [call for call in self.made if call.running and call.worker == worker]
        self.steady += LEASE
        self.run(other._beat())
        known = sum(self.is_known(call) for call in lost)
        assert self.run(other.expire()) == known
        for call in lost:
            self.memory.settle(call.reservations[0], Amounts())
            self.close(call, Amounts())
        self.workers[worker] = self.connected()

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_is_taken_for_dead_and_comes_back(self, worker):
        """Its calls run on, and are held again."""
        stopped, other = self.workers[worker], self.workers[1 - worker]
        self.beat()
        self.steady += LEASE
        self.run(other._beat())
        self.run(other.expire())
        stopped._lost("stopped")
        self.run(stopped._connect())
        self.run(stopped._beat())
        for call in self.made:
            call.taken_for_dead |= call.running and call.worker == worker

    @rule()
    def beat(self):
        for worker in self.workers:
            self.run(worker._beat())
        for worker in self.workers:
            assert self.run(worker.expire()) == 0

    @rule()
    def forget(self):
        while self.run(self.workers[0]._run("forget", ["ogw:counters"], [self.clock(), 100])) == 100:
            pass

    # What must hold

    @invariant()
    @precondition(lambda self: self.workers)
    def look(self):
        """Both engines count what the account says, and no limit is overrun but by what estimates were too low."""
        for limit in self.limits:
            for address in ADDRESSES:
                entries = list(self.counted(limit, address))
                account = sum(entry.amount for entry in entries)
                assert self.memory.total(limit, address) == account, limit
                assert self.run(self.workers[0].total(limit, address)) == account, limit
                allowed = max((entry.ceiling for entry in entries), default=0)
                assert account <= allowed + sum(max(entry.amount - entry.estimated, 0) for entry in entries)

    # The account

    def counted(self, limit, address):
        """The entries that are in the window that runs now."""
        now, counter = self.clock(), Entry(limit, 0, address, 0, 0, 0).counter()
        for call in self.made:
            for entry in call.entries:
                if entry.counter() != counter:
                    continue
                if limit.window == "seconds":
                    there = entry.when * PARTS // limit.seconds >= now * PARTS // limit.seconds - PARTS
                else:
                    there = window_of(limit, entry.when, self.zone) == window_of(limit, now, self.zone)
                if there:
                    yield entry

    def account(self, limit, address):
        return sum(entry.amount for entry in self.counted(limit, address))

    def fits(self, limit, address, estimate):
        return self.account(limit, address) + estimate.by_metric[limit.metric] <= limit.amount

    def says(self, text, limit, address, estimate):
        left = max(limit.amount - self.account(limit, address), 0)
        needed = estimate.by_metric[limit.metric]
        return f"{limit.describe()} is reached: {left} left, this call needs {needed}." in text

    def changed(self, number, **fields):
        return replace(self.limits[number], **fields)

    def is_known(self, call):
        """Whether a counter still knows a call: those of windows long past are forgotten."""
        mine = call.reservations[1]
        with self.server.client() as client:
            names = [f"ogw:limit:{held.window.key}" for held in mine.held]
            return any(client.hexists(name, f"@{mine.holder}:{mine.id}") for name in names)

    def tell_end(self, call, actual):
        for engine, reservation in zip((self.memory, self.workers[call.worker]), call.reservations, strict=True):
            engine.release(reservation) if actual is None else engine.settle(reservation, actual)

    def end(self, call, actual):
        if call.running:
            self.tell_end(call, actual)
            self.close(call, actual)
            self.run(self.workers[call.worker]._ask("PING"))  # it was heard before that

    def close(self, call, actual):
        call.running = False
        for entry in call.entries:
            entry.amount = 0 if actual is None else actual.used[entry.limit.metric]


@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_u6_both_engines_agree_with_a_simple_account_whatever_happens():
    server, loop = RedisServer().start(), asyncio.new_event_loop()
    logging.disable()
    machine = type("Machine", (BothEngines,), {"server": server, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES or 30,
                stateful_step_count=50,
                derandomize=not EXAMPLES,
                database=None,
                phases=[Phase.generate],  # to shorten an example takes longer than a test may
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        logging.disable(logging.NOTSET)
        loop.close()
        server.remove()
