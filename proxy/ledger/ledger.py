"""The data plane's side of usage records: cheap entries on the path of a call, the database behind its back."""

import asyncio
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError

from proxy.call import Call
from proxy.configuration import Configuration
from proxy.errors import Unavailable
from proxy.ledger import rows, spool
from proxy.ledger.rows import Row
from proxy.ledger.spool import Spool, SpoolFull
from proxy.ledger.store import Store
from proxy.threads import WorkThread
from usage import texts
from usage.costs import PriceRow
from usage.texts import Text

T = TypeVar("T")

logger = logging.getLogger(__name__)

STORE_SECONDS = 0.2
RETRY_SECONDS = 1.0
ROWS_PER_BATCH = 1000
# So few records are stored at once; more of them wait up to so many rounds for a larger batch, which costs less a call.
FEW_ROWS = 50
MAX_ROUNDS = 4  # a finished call is on the pages within a second (docs/usage.md)
# How often dead workers' spools are looked for.
ADOPT_SECONDS = 5.0
# Texts that wait for the database; the oldest make room. How often those that are too old are deleted.
MAX_TEXTS = 2000
FORGET_SECONDS = 3600.0
SYNC_SECONDS = 0.1


class Ledger:
    """One per process. All methods are called in the loop; blocking work is done in two threads of its own."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        root = configuration.spool_dir
        self.spool = Spool(root, configuration.spool_max_bytes)
        self._store = Store(configuration.time_zone, root / "quarantine.jsonl")
        self._writer = WorkThread("ledger")
        self._syncer = WorkThread("ledger-sync")
        self._tasks: list[asyncio.Task[None]] = []
        # Never in the spool: what people wrote lies in no file beside the database. A crash loses the last of it.
        self._texts: deque[Text] = deque(maxlen=MAX_TEXTS)
        # Whether the database refused the last batch.
        self.failing = False

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._store_for_ever(), name="ledger store"),
            asyncio.create_task(self._keep_for_ever(), name="ledger keep"),
            asyncio.create_task(self._adopt_for_ever(), name="ledger adopt"),
            asyncio.create_task(self._keep_texts_for_ever(), name="ledger texts"),
        ]

    def admit(self, call: Call) -> Row:
        """Opens the record of a call. Raises Unavailable where it could not be kept: the call must not be made."""
        row = rows.opened(call, self.configuration.currency)
        try:
            self.spool.open(row, rows.price_entry(call.price))
        except SpoolFull as exc:
            logger.warning("A call was refused because its usage could not be recorded: %s", exc)
            raise Unavailable(
                "ledger_full",
                "The gateway cannot record usage now, and does not serve unrecorded calls.",
                retry_after=5,
            ) from None
        return row

    def progress(self, calls: Iterable[Call]) -> None:
        """Notes what the running calls have produced so far."""
        self.spool.progress(map(rows.note, calls))

    def finish(self, call: Call, row: Row) -> None:
        self.spool.close(rows.closed(row, call))

    def keep_text(self, text: Text) -> None:
        self._texts.append(text)

    def run(self, function: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """In the thread that stores records, after what it is doing: for what else must not block the loop."""
        return self._writer.run(function, *args)

    @property
    def is_writable(self) -> bool:
        return self.spool.is_writable

    @property
    def backlog(self) -> int:
        """Ended calls that are not in the database yet."""
        return sum(segment.unstored for segment in self.spool.segments)

    async def close(self, seconds: float) -> None:
        """Stores what is left, as far as that is done in time; the rest stays in the spool for the next process."""
        # First, so that no two of us count the same rows as stored. What a cancelled task had given to the thread is
        # stored before anything else, and storing it again changes nothing.
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(seconds):
                while self.backlog:
                    await self._store_some()
                await self._store_texts()
        except (TimeoutError, DatabaseError, InterfaceError, OSError):
            logger.warning("%d records stay in the spool until the database takes them", self.backlog)
        finally:
            self._writer.stop(self._store.close)
            self._syncer.stop()
            self.spool.shut()

    async def _store_for_ever(self) -> None:
        while True:
            try:
                await self._store_some()
                if self.failing:
                    logger.warning("The database takes usage records again")
                self.failing = False
                await self._until_worth_it()
            except (DatabaseError, InterfaceError) as exc:
                if not self.failing:
                    logger.warning("Usage records stay in the spool: the database fails (%s)", type(exc).__name__)
                self.failing = True
                self._writer.run(self._store.close)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                # Records wait in the spool; whatever it was, the next try may store them (L5).
                logger.exception("Usage records could not be stored")
                self._writer.run(self._store.close)
                await asyncio.sleep(RETRY_SECONDS)

    async def _until_worth_it(self) -> None:
        for _ in range(MAX_ROUNDS):
            await asyncio.sleep(STORE_SECONDS)
            if not FEW_ROWS < self.backlog < ROWS_PER_BATCH or self.spool.is_filling:
                return

    async def _store_some(self) -> None:
        while (taken := self.spool.take(ROWS_PER_BATCH)) is not None:
            segment, batch = taken
            if batch:
                await self._writer.run(self._store.add, batch)
            else:
                await self._store_all(spool.closed_rows(segment.path))
            self.spool.stored(segment, batch)
        self.spool.release()

    async def _store_all(self, left: Iterator[Row]) -> int:
        """Reads and stores batch by batch, so that what ends meanwhile is stored in between. Returns how many."""
        stored = 0
        while batch := await self._writer.run(lambda: list(islice(left, ROWS_PER_BATCH))):
            await self._writer.run(self._store.add, batch)
            stored += len(batch)
        return stored

    async def _keep_texts_for_ever(self) -> None:
        forgotten_at = float("-inf")
        while True:
            try:
                await self._store_texts()
                if time.monotonic() - forgotten_at > FORGET_SECONDS:
                    forgotten_at = time.monotonic()
                    await self._writer.run(texts.forget)
                await asyncio.sleep(STORE_SECONDS)
            except (DatabaseError, InterfaceError):
                await asyncio.sleep(RETRY_SECONDS)  # said by the task that stores
            except Exception:
                logger.exception("Texts could not be stored, and are lost")
                self._texts.clear()
                await asyncio.sleep(RETRY_SECONDS)

    async def _store_texts(self) -> None:
        while self._texts:
            batch = list(islice(self._texts, ROWS_PER_BATCH))
            await self._writer.run(texts.store, batch)
            for text in batch:
                if self._texts and self._texts[0] is text:
                    self._texts.popleft()

    async def _keep_for_ever(self) -> None:
        """Sees to it that what was written is on the disk soon, and writes what the disk refused."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                if self.spool.problem:
                    self.spool.mend()
                if files := self.spool.dirty_files():
                    await self._syncer.run(_sync, files)
            except OSError as exc:
                logger.warning("The spool could not be synced: %s", exc)
            except Exception:
                logger.exception("The spool could not be kept")  # the next round may succeed (L5)

    async def _adopt_for_ever(self) -> None:
        while True:
            try:
                await self._adopt()
            except (DatabaseError, InterfaceError):
                pass  # said by the task that stores
            except Exception:
                logger.exception("Dead workers' spools could not be taken over")
            await asyncio.sleep(ADOPT_SECONDS)

    async def _adopt(self) -> None:
        """Stores what dead processes left."""
        orphans = spool.orphans(self.configuration.spool_dir)
        while (orphan := await self._writer.run(next, orphans, None)) is not None:
            directory, descriptor = orphan
            try:
                adopted = await self._store_all(left_behind(directory))
                await self._writer.run(shutil.rmtree, directory)
                if adopted:
                    logger.warning("Took over %d records of a process that is gone", adopted)
            except (DatabaseError, InterfaceError):
                raise
            except Exception:
                logger.exception("The spool %s could not be taken over and is left for you to look at", directory.name)
                (directory / "lock").unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def left_behind(directory: Path) -> Iterator[Row]:
    """The rows of a dead process that may not be in the database: what it closed, then what it left open."""
    opened: dict[str, tuple[Row, PriceRow | None]] = {}
    for path in sorted(directory.glob("[0-9]*.log")):
        for kind, value in spool.entries(path):
            if kind == "o":
                row, price = value
                opened[row[0]] = rows.completed(row), rows.price_of_entry(price)
            elif kind == "c":
                opened.pop(value[0], None)
                yield rows.completed(value)
    progress: dict[str, list[tuple[float, int, int, str]]] = {}
    for path in directory.glob("progress-*.log"):
        for _, (call_id, *note) in spool.entries(path):
            if call_id in opened:
                progress.setdefault(call_id, []).append(tuple(note))
    for call_id, (row, price) in opened.items():
        yield rows.interrupted(row, price, max(progress.get(call_id, ()), default=None))


def _sync(files: list[int]) -> None:
    try:
        for descriptor in files:
            os.fdatasync(descriptor)
    finally:
        for descriptor in files:
            os.close(descriptor)
