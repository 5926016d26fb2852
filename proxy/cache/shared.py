"""Kept answers in Redis, behind those in memory: for all processes, and after a restart.

No call depends on it: a look-up that is not answered within the patience of a call is a miss, and until that answer
comes nobody asks for another. What is stored is sealed with a key of this installation (AES-GCM, bound to the name
under which it stands): Redis can neither read nor swap nor make up answers, and two installations can share one.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import hiredis
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.cache.entries import Entry
from proxy.limits.connection import Connection, RedisAway

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
# Of the connection, before it is given up: a large answer takes longer on its way than a call would wait.
CONNECTION_PATIENCE = 2.0
# Bytes that are on their way to Redis; beyond them nothing is stored.
MAX_UNSENT = 16 << 20
# How long nothing is stored in a Redis that has no memory left.
FULL_SECONDS = 10.0
_NONCE = 12
# Names that are deleted by one command.
AT_ONCE = 500


class SharedStore:
    """`start` and `close` in the loop of the calls."""

    def __init__(self, url: str, secret: bytes, patience: float) -> None:
        """`secret`: 32 bytes; `patience`: seconds that a call waits for an answer."""
        self.url = url
        self.patience = patience
        self.problem = "not connected yet"  # why Redis cannot be used; empty while it can
        self._cipher = AESGCM(hmac.digest(secret, b"sealed answers", hashlib.sha256))
        self._prefix = f"ogw:cache:{hmac.digest(secret, b'names of answers', hashlib.sha256).hex()[:12]}"
        self._secret = secret
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._full_until = 0.0
        self._lost = asyncio.Event()
        # The last look-up that was not answered in time, until it is.
        self._late: asyncio.Future[Any] | None = None
        self._purging: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_for_ever(), name="shared answers")

    async def close(self) -> None:
        for task in (self._task, *self._purging):
            if task is not None:
                task.cancel()
        if self._connection is not None:
            self._connection.abort()

    @property
    def usable(self) -> bool:
        return not self.problem and self._late is None

    async def get(self, names: Sequence[str]) -> list[Entry | None]:
        """Never fails: what cannot be had in time is not there."""
        connection = self._connection
        if connection is None or not self.usable or not names:
            return [None] * len(names)
        try:
            asked = connection.ask("MGET", *names)
            async with asyncio.timeout(self.patience):
                found = await asyncio.shield(asked)
        except TimeoutError:
            # It may hang, or much may be on its way: the connection finds out.
            self._late = asked
            asked.add_done_callback(partial(self._came, connection))
        except (RedisAway, hiredis.HiredisError) as exc:
            self._give_up(str(exc), connection)
        else:
            return [self._opened(name, sealed) for name, sealed in zip(names, found, strict=True)]
        return [None] * len(names)

    def _came(self, connection: Connection, asked: asyncio.Future[Any]) -> None:
        if self._late is asked:
            self._late = None
        if (problem := asked.exception()) is not None:
            self._give_up(str(problem), connection)

    def put(self, name: str, entry: Entry, ttl_seconds: float) -> None:
        """Sends it and does not wait; where that cannot be, it is not stored."""
        connection = self._connection
        if connection is None or self.problem or connection.unsent > MAX_UNSENT or self._full_until > time.monotonic():
            return
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, entry.packed(), name.encode())
        try:
            connection.tell(
                "SET", name, sealed, "PX", max(int(ttl_seconds * 1000), 1),
                unheard=lambda problem: self._not_stored(problem, connection),
            )  # fmt: skip
        except RedisAway as exc:
            self._give_up(str(exc), connection)

    def name(self, scope: str, model: str, key: bytes) -> str:
        """By scope and model, so that purges find it."""
        return f"{self._prefix}:{scope}:{self._mark(model)}:{key.hex()}"

    def purge(self, scope: str = "", model: str = "") -> None:
        """Deletes what is there of a scope or a model, in its own time. Empty: of all."""
        pattern = f"{self._prefix}:{scope or '*'}:{self._mark(model) if model else '*'}:*"
        task = asyncio.create_task(self._purge(pattern), name="purge of shared answers")
        self._purging.add(task)
        task.add_done_callback(self._purging.discard)

    async def _purge(self, pattern: str) -> None:
        try:
            connection = self._connection
            if connection is None:
                return  # they are not reachable any more, and expire
            cursor: bytes = b"0"
            while True:
                cursor, names = await connection.ask("SCAN", cursor, "MATCH", pattern, "COUNT", AT_ONCE)
                if names:
                    await connection.ask("UNLINK", *names)
                if cursor == b"0":
                    return
        except (RedisAway, hiredis.HiredisError) as exc:
            logger.warning("Purged answers are left in Redis until they expire: %s", exc)

    def _mark(self, model: str) -> str:
        return hmac.digest(self._secret, b"model " + model.encode(), hashlib.sha256).hex()[:12]

    def _opened(self, name: str, sealed: bytes | None) -> Entry | None:
        if sealed is None:
            return None
        try:
            return Entry.unpacked(self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode()))
        except (InvalidTag, ValueError):
            logger.warning("Something in Redis is not what this gateway put there; it is not used")
            return None

    def _not_stored(self, problem: str, connection: Connection) -> None:
        if not problem.startswith("OOM"):
            self._give_up(problem, connection)
        elif self._full_until <= time.monotonic():
            # What it has can still be had; and limits need the room more.
            self._full_until = time.monotonic() + FULL_SECONDS
            logger.warning("Redis is full: answers are not stored there for %.0f s (%s)", FULL_SECONDS, problem)

    def _give_up(self, problem: str, connection: Connection) -> None:
        if connection is not self._connection:
            return  # it was replaced
        if not self.problem:
            logger.warning("Kept answers are not shared until Redis answers again: %s", problem)
        self.problem = problem or "it does not answer"
        self._connection = None
        connection.abort()
        self._lost.set()

    async def _connected(self) -> Connection:
        connection = await Connection.open(self.url, CONNECTION_PATIENCE)
        try:
            await connection.ask("PING")
        except (RedisAway, hiredis.HiredisError):
            connection.abort()
            raise
        return connection

    async def _keep_for_ever(self) -> None:
        while True:
            try:
                self._lost.clear()
                connection = await self._connected()
                if self.problem and self.problem != "not connected yet":
                    logger.warning("Redis answers again: kept answers are shared")
                self._connection, self.problem = connection, ""
                await self._lost.wait()
            except (RedisAway, hiredis.HiredisError) as exc:
                if not self.problem or self.problem == "not connected yet":
                    logger.warning("Kept answers are not shared: Redis does not answer (%s)", exc)
                self.problem = str(exc) or "it does not answer"
            except Exception:
                logger.exception("Redis could not be used for kept answers")
                self.problem = "an error of ours"
            await asyncio.sleep(RETRY_SECONDS)
