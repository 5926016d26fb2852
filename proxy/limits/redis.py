"""Limits that several processes share, in Redis. One reserve is one script, so it is atomic; one round trip a call.

Each reservation is a lease, renewed by the worker that made it: those of a worker that died are given back when it runs
out. Budgets do not live here alone: a counter of a calendar window that was lost begins with what the roll-ups know.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import hiredis
import orjson

from proxy.limits.connection import Connection, RedisAway
from proxy.limits.rules import Amounts, Held, Reservation, Rule, Window, refusal, seconds_until_room

logger = logging.getLogger(__name__)

# Seconds a call waits for Redis before this process goes on by itself; then until it is tried again.
PATIENCE = 0.05
RETRY_SECONDS = 0.5
# Of a reservation whose worker says nothing any more; it says so three times in that time.
LEASE_SECONDS = 30.0
# Kept after a window has ended, for calls that end late.
KEPT_SECONDS = 3600
EXPIRED_AT_ONCE = 200

_LEASES = "ogw:leases"
_SCRIPTS = {name: (Path(__file__).parent / f"{name}.lua").read_text() for name in ("reserve", "settle", "expire")}


class SharedReservation(Reservation):
    __slots__ = ()


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
        self.recorded: Mapping[str, int] = {}
        self.problem = "not connected yet"  # why Redis cannot be used; empty while it can
        self._connection: Connection | None = None
        self._shas: dict[str, str] = {}
        self._live: dict[str, SharedReservation] = {}
        # Ends that Redis did not hear of; told again when it is back, unless their leases ran out before.
        self._untold: list[tuple[SharedReservation, Amounts | None]] = []
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_for_ever(), name="shared limits")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            try:
                async with asyncio.timeout(1):
                    await self._connection.ask("PING")  # what was sent before has been carried out then
            except (RedisAway, TimeoutError, hiredis.HiredisError):
                pass
            self._connection.abort()

    @property
    def usable(self) -> bool:
        return not self.problem

    async def reserve(
        self, call_id: str, rules: Iterable[Rule], model: str, address: str, estimate: Amounts
    ) -> SharedReservation:
        """As MemoryLimits.reserve. Raises RedisAway where Redis does not answer in time."""
        now = self.clock()
        # Totals come with the answer.
        held = [
            Held(rule, rule.window_at(now, address, self.zone), estimate.of(rule.metric), 0)
            for rule in rules
            if not rule.model or rule.model == model
        ]
        reservation = SharedReservation(call_id, held)
        if not held:
            reservation.ended = True
            return reservation
        keys, arguments = [_LEASES], [now, now + self.lease_seconds, call_id, _as_lease(held)]
        for rule, window, needed, _ in held:
            keys.append(_key(window))
            kept = int(window.ends - now) + KEPT_SECONDS if window.ends else 0
            amount = rule.amount if rule.enforced else -1
            recorded = self.recorded.get(window.key, 0)
            # Calls that were refused in the line have records, but are not counted as requests.
            only_if_new = -recorded if rule.metric == "requests" else recorded
            arguments += [amount, needed, window.part, window.oldest, kept, only_if_new]
        self._live[call_id] = reservation
        try:
            found = await self._run("reserve", keys, arguments)
        except BaseException:
            # It may have been carried out: then it is given back, now or with the lease.
            self.release(reservation)
            raise
        if found[0] == 0:
            del self._live[call_id]
            rule, window, needed, _ = held[found[1] - 1]
            total = int(found[2])
            wait = seconds_until_room(rule, window, _parts(found[3]), total, needed, now)
            raise refusal(rule, window, total, needed, wait, now)
        reservation.held = [entry._replace(total=int(total)) for entry, total in zip(held, found[1], strict=True)]
        return reservation

    def settle(self, reservation: SharedReservation, actual: Amounts) -> None:
        """As MemoryLimits.settle. Does not wait: the end is on its way before whatever this process sends next."""
        self._end(reservation, actual)

    def release(self, reservation: SharedReservation) -> None:
        self._end(reservation, None)

    def _end(self, reservation: SharedReservation, actual: Amounts | None) -> None:
        if reservation.ended:
            return
        reservation.ended = True
        self._live.pop(reservation.id, None)
        try:
            self._tell_end(reservation, actual)
        except RedisAway:
            self._untold.append((reservation, actual))

    def _tell_end(self, reservation: SharedReservation, actual: Amounts | None) -> None:
        if self._connection is None:
            raise RedisAway("not connected")
        keys: list[str] = [_LEASES]
        arguments: list[Any] = [reservation.id]
        for rule, window, needed, _ in reservation.held:
            keys.append(_key(window))
            arguments += [needed, 0 if actual is None else actual.used(rule.metric), window.part]
        self._connection.tell("EVALSHA", self._shas["settle"], len(keys), *keys, *arguments)

    async def total(self, rule: Rule, address: str) -> int:
        """What is used and held of a rule now. Raises RedisAway."""
        window = rule.window_at(self.clock(), address, self.zone)
        if self._connection is None:
            raise RedisAway("not connected")
        if not window.part:
            return int(await self._connection.ask("HGET", _key(window), "total") or 0)
        parts = _parts(await self._connection.ask("HGETALL", _key(window)))
        return sum(count for part, count in parts.items() if part >= window.oldest)

    async def held(self) -> dict[str, int]:
        """What calls in flight hold, by counter; those that hold nothing are left out."""
        if self._connection is None:
            raise RedisAway("not connected")
        found: dict[str, int] = {}
        cursor = b"0"
        while True:
            cursor, keys = await self._connection.ask("SCAN", cursor, "MATCH", "ogw:limit:*", "COUNT", 500)
            for key in keys:
                if amount := int(await self._connection.ask("HGET", key, "held") or 0):
                    found[key.decode().removeprefix("ogw:limit:")] = amount
            if cursor == b"0":
                return found

    async def expire(self) -> int:
        """Gives back what dead workers' calls held; returns of how many calls."""
        return int(await self._run("expire", [_LEASES], [self.clock(), EXPIRED_AT_ONCE]))

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        connection = self._connection
        if connection is None or self.problem:
            raise RedisAway(self.problem)
        try:
            return await connection.ask("EVALSHA", self._shas[script], len(keys), *keys, *arguments)
        except RedisAway as exc:
            self._lost(str(exc))
            raise
        except hiredis.ReplyError as exc:
            # Scripts are lost with a restart (NOSCRIPT); OOM, READONLY, LOADING pass some time.
            self._lost(str(exc))
            raise RedisAway(str(exc)) from exc

    def _lost(self, problem: str) -> None:
        if not self.problem:
            logger.error("Limits are counted by each process alone until Redis answers again: %s", problem)
        self.problem = problem or "it does not answer"
        self._wanted.set()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _keep_for_ever(self) -> None:
        """Connects, and connects again; renews the leases of this process and ends those of dead ones."""
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    await self._connect()
                await self._renew()
                while await self.expire() == EXPIRED_AT_ONCE:
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
        untold, self._untold = self._untold, []
        for reservation, actual in untold:
            self._tell_end(reservation, actual)
        if self.problem and self.problem != "not connected yet":
            logger.warning("Redis answers again: limits are shared by all processes")
        self.problem = ""

    async def _renew(self) -> None:
        """Renews the leases of the calls that run; those that ran out (a process that was stopped) stay gone."""
        if self._live and self._connection is not None:
            until = self.clock() + self.lease_seconds
            pairs = [value for call_id in self._live for value in (until, call_id)]
            await self._connection.ask("ZADD", _LEASES, "XX", *pairs)


def _key(window: Window) -> str:
    return f"ogw:limit:{window.key}"


def _parts(fields: list[bytes]) -> dict[int, int]:
    """The parts of a rolling window among the fields of its counter."""
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return {int(name): int(count) for name, count in pairs if name.isdigit()}


def _as_lease(held: list[Held]) -> bytes:
    """What expire.lua gives back: requests were made and stay counted."""
    return orjson.dumps(
        [
            [_key(window), window.part, needed, needed if rule.metric == "requests" else 0]
            for rule, window, needed, _ in held
        ]
    )
