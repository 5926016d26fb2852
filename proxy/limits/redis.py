"""Limits that several processes share, in Redis. One reserve is one script, so it is atomic; one round trip a call.

Each reservation is a lease: whoever made it beats while it lives, and what one held that beats no more is given back by
the others, each of which judges by its own steady clock; clocks that are set end no lease. Each counter knows by itself
which calls it holds for, so that it stays right whatever else Redis loses. With each connection a process begins anew,
under a new name: what the old one held is given back and what runs is held again, so that nothing stays that got lost
on the way. Budgets do not live here alone: a counter of a calendar window begins with what the roll-ups know.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hiredis

from proxy.limits.connection import Argument, Connection, RedisAway, filled, packed
from proxy.limits.plans import Place, Plans
from proxy.limits.questions import COUNTERS, HOLDERS, Questions, evalsha, key_of, questions_of, reserving, settling
from proxy.limits.rules import Amounts, Full, Held, Reservation, Rule, held_of, refusal_by

logger = logging.getLogger(__name__)

# Seconds a call waits for Redis before this process goes on by itself; then until it is tried again.
PATIENCE = 0.05
RETRY_SECONDS = 0.5
# Of a reservation whose worker says nothing any more; it says so three times in that time.
LEASE_SECONDS = 30.0
# Seconds that the end of a call may wait to be told together with what is sent next, where there is plenty of room.
ENDS_WAIT = 0.005
# Counters that are dropped, or searched for calls of dead workers, by one script: calls wait meanwhile.
AT_ONCE = 100

_NAMES = ("reserve", "settle", "expire", "forget")
_SCRIPTS = {name: (Path(__file__).parent / f"{name}.lua").read_text() for name in _NAMES}


class SharedReservation(Reservation):
    __slots__ = ("holder", "questions")

    def __init__(self, reservation_id: str, held: list[Held], questions: Questions, *, is_varied: bool) -> None:
        super().__init__(reservation_id, held, is_varied=is_varied)
        self.questions = questions
        # The name under which Redis knows who holds it: another one after each loss of the connection.
        self.holder = questions.holder


class End(NamedTuple):
    """One that Redis has not confirmed."""

    reservation: SharedReservation
    actual: Amounts | None  # None: given back
    may_be_known: bool  # it was sent


class RedisLimits:
    """`clock` gives epoch seconds that never step. `start` and `close` in the loop that makes the calls."""

    def __init__(
        self,
        url: str,
        zone: str,
        clock: Callable[[], float] = time.time,
        *,
        lease_seconds: float = LEASE_SECONDS,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: seconds that a call waits for Redis."""
        self.url = url
        self.zone = zone
        self.clock = clock
        self.lease_seconds = lease_seconds
        self.patience = patience
        self.plans = Plans(zone, self._questions)
        self.problem = "not connected yet"  # why Redis cannot be used; empty while it can
        self._connection: Connection | None = None
        self._shas: dict[str, str] = {}
        self._name = ""  # one for each connection
        self._beats = 0
        # name → what it said last, and since when it says so by our clock
        self._heard: dict[bytes, tuple[bytes, float]] = {}
        self._live: dict[str, SharedReservation] = {}
        self._untold: list[End] = []  # told with the next command, or when Redis is back
        self._telling: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_for_ever(), name="shared limits")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._tell_ends()
            try:
                async with asyncio.timeout(1):
                    await self._connection.ask("PING")  # what was sent before has been carried out then
            except (RedisAway, TimeoutError, hiredis.HiredisError):
                pass
            self._connection.abort()

    @property
    def usable(self) -> bool:
        return not self.problem

    def know(self, recorded: Mapping[str, int]) -> None:
        """As MemoryLimits.know."""
        self.plans.recorded = recorded

    async def reserve(
        self, call_id: str, rules: tuple[Rule, ...], model: str, address: str, estimate: Amounts
    ) -> SharedReservation:
        """As MemoryLimits.reserve. Raises RedisAway where Redis does not answer in time."""
        if self.problem:
            raise RedisAway(self.problem)
        now = self.clock()
        plan = self.plans.of(rules, model, address, now)
        questions = plan.details
        wanted = estimate.by_metric
        # Totals come with the answer.
        held = [held_of((rule, window, wanted[rule.metric], 0)) for rule, window in questions.places]
        reservation = SharedReservation(call_id, held, questions, is_varied=plan.is_varied)
        if not held:
            reservation.ended = True
            return reservation
        self._live[call_id] = reservation
        varying = [b"%d" % wanted[metric] for metric in questions.varying]
        try:
            found = await self._ask_packed(filled(questions.reserve, call_id.encode(), b"%a" % now, *varying))
        except BaseException:
            # It may have been carried out: then it is given back, now or with the lease.
            self.release(reservation)
            raise
        if found[0] == 0:
            del self._live[call_id]
            full = []
            for number, total, fields in found[1]:
                rule, window, needed, _ = held[number - 1]
                full.append(Full(rule, window, _parts(fields), int(total), needed))
            raise refusal_by(full, now)
        reservation.held = [held_of((*one[:3], total)) for one, total in zip(held, found[1], strict=True)]
        return reservation

    def _questions(self, places: list[Place], now: float) -> Questions:
        return questions_of(places, self.plans.recorded, self._name, self._shas)

    def settle(self, reservation: SharedReservation, actual: Amounts) -> None:
        """As MemoryLimits.settle. Does not wait: Redis hears of the end before whatever this process sends next."""
        self._end(reservation, actual)

    def release(self, reservation: SharedReservation) -> None:
        self._end(reservation, None)

    def _end(self, reservation: SharedReservation, actual: Amounts | None) -> None:
        if reservation.ended:
            return
        reservation.ended = True
        self._live.pop(reservation.id, None)
        self._untold.append(End(reservation, actual, may_be_known=False))
        connection = self._connection
        if connection is None:
            return
        if reservation.questions.is_concurrent or any(
            2 * total > rule.amount for rule, _, _, total in reservation.held if rule.enforced
        ):
            self._tell_ends()  # another process may wait for the room
        elif self._telling is None:
            self._telling = connection.loop.call_later(ENDS_WAIT, self._tell_ends)

    def _tell_ends(self) -> None:
        """Sends what is untold. What cannot be sent stays so until there is another connection."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        connection = self._connection
        if connection is not None:
            untold, self._untold = self._untold, []
            for end in untold:
                self._tell_end(end, connection)

    def _tell_end(self, end: End, connection: Connection) -> None:
        reservation, actual, may_be_known = end
        questions = reservation.questions
        used = {} if actual is None else actual.used
        if used and not may_be_known and reservation.holder == questions.holder:
            varying = [b"%d" % used[metric] for metric in questions.varying]
            command = filled(questions.settle, reservation.id.encode(), *varying)
        else:
            end_of = reservation.holder, reservation.id, questions.places, used
            command = packed(evalsha(self._shas["settle"], *settling(*end_of, may_be_known=may_be_known)))
        try:
            connection.tell_packed(command, unheard=partial(self._unheard, end, connection))
        except RedisAway:
            self._untold.append(end)

    def _unheard(self, end: End, connection: Connection, problem: str) -> None:
        self._untold.append(end._replace(may_be_known=True))
        self._lost(problem, connection)

    async def total(self, rule: Rule, address: str) -> int:
        """What is used and held of a rule now. Raises RedisAway."""
        window = rule.window_at(self.clock(), address, self.zone)
        if not window.part:
            return int(await self._ask("HGET", key_of(window), "total") or 0)
        parts = _parts(await self._ask("HGETALL", key_of(window)))
        return sum(count for part, count in parts.items() if part >= window.oldest)

    async def held(self) -> dict[str, int]:
        """What calls in flight hold, by counter; those that hold nothing are left out."""
        found: dict[str, int] = {}
        async for keys in self._counters():
            for key in keys:
                if amount := int(await self._ask("HGET", key, "held") or 0):
                    found[key.decode().removeprefix("ogw:limit:")] = amount
        return found

    async def expire(self) -> int:
        """Gives back what others held that have not beaten for the time of a lease; returns of how many calls."""
        now = self.clock()
        beats = await self._ask("HGETALL", HOLDERS)
        heard: dict[bytes, tuple[bytes, float]] = {}
        for name, said in zip(beats[::2], beats[1::2], strict=True):
            before = self._heard.get(name)
            heard[name] = before if before is not None and before[0] == said else (said, now)
        self._heard = heard
        ours = self._name.encode()
        dead = [name for name, (_, since) in heard.items() if name != ours and now - since >= self.lease_seconds]
        return await self._give_back(dead) if dead else 0

    async def _give_back(self, names: Sequence[Argument]) -> int:
        ended: set[bytes] = set()
        async for keys in self._counters():
            ended.update(await self._run("expire", keys, names))
        await self._ask("HDEL", HOLDERS, *names)
        return len(ended)

    async def _counters(self) -> AsyncIterator[list[bytes]]:
        """The names of all counters, some at a time; one may come twice."""
        cursor = b"0"
        while True:
            cursor, keys = await self._ask("SCAN", cursor, "MATCH", "ogw:limit:*", "COUNT", AT_ONCE)
            if keys:
                yield keys
            if cursor == b"0":
                return

    async def _run(self, script: str, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        return await self._ask(*evalsha(self._shas.get(script, ""), keys, arguments))

    async def _ask(self, *command: Argument) -> Any:
        return await self._ask_packed(packed(command))

    async def _ask_packed(self, command: bytes) -> Any:
        connection = self._connection
        if connection is None:
            raise RedisAway(self.problem)
        if self._untold:
            self._tell_ends()
        try:
            return await connection.ask_packed(command)
        except RedisAway as exc:
            self._lost(str(exc), connection)
            raise
        except hiredis.ReplyError as exc:
            # Scripts are lost with a restart (NOSCRIPT); OOM, READONLY, LOADING pass some time.
            self._lost(str(exc), connection)
            raise RedisAway(str(exc)) from exc

    def _lost(self, problem: str, connection: Connection | None = None) -> None:
        """`connection`: the one that has the problem, which may have been replaced."""
        if connection is not self._connection and connection is not None:
            return
        if not self.problem:
            logger.error("Limits are counted by each process alone until Redis answers again: %s", problem)
        self.problem = problem or "it does not answer"
        self._wanted.set()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _keep_for_ever(self) -> None:
        """Connects, and connects again; says that this process lives, and ends the leases of dead ones."""
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    await self._connect()
                await self._beat()
                await self.expire()
                while await self._run("forget", [COUNTERS], [self.clock(), AT_ONCE]) == AT_ONCE:
                    pass
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.lease_seconds / 3):
                        await self._wanted.wait()
                self._wanted.clear()
            except RedisAway as exc:
                self._lost(str(exc))
                await asyncio.sleep(RETRY_SECONDS)
                self._wanted.clear()
            except Exception:
                logger.exception("The shared limits could not be kept")
                self._lost("an error of ours")
                await asyncio.sleep(RETRY_SECONDS)

    async def _connect(self) -> None:
        connection = await Connection.open(self.url, self.patience)
        try:
            shas = {name: (await connection.ask("SCRIPT", "LOAD", text)).decode() for name, text in _SCRIPTS.items()}
        except hiredis.ReplyError as exc:
            connection.abort()
            raise RedisAway(str(exc)) from exc
        self._connection, self._shas = connection, shas
        await self._begin_anew()
        if self.problem and self.problem != "not connected yet":
            logger.warning("Redis answers again: limits are shared by all processes")
        self.problem = ""

    async def _begin_anew(self) -> None:
        """Tells what ended meanwhile, and holds what runs under a new name; calls are counted here alone till then."""
        before, self._name, self._beats = self._name, secrets.token_hex(8), 0
        self.plans.clear()
        self._tell_ends()
        if before:
            await self._give_back([before])
        for reservation in list(self._live.values()):
            if not reservation.ended:
                reservation.holder = self._name
                taken = [(rule, window, needed) for rule, window, needed, _ in reservation.held]
                asked = reserving(self._name, reservation.id, self.clock(), taken, self.plans.recorded, again=True)
                await self._run("reserve", *asked)

    async def _beat(self) -> None:
        """Says that this process lives. Raises RedisAway where Redis forgot it, or it was held for dead."""
        beats = int(await self._ask("HINCRBY", HOLDERS, self._name, 1))
        self._beats, expected = beats, self._beats + 1
        if beats != expected:
            raise RedisAway("it lost what this process holds")


def _parts(fields: list[bytes]) -> dict[int, int]:
    """The parts of a rolling window among the fields of its counter."""
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return {int(name): int(count) for name, count in pairs if name.isdigit()}
