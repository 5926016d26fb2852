"""The data plane's side of usage records: cheap entries on the path of a call, the database behind its back."""

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path

from django.db import DatabaseError, InterfaceError

from proxy.call import Call
from proxy.configuration import Configuration
from proxy.errors import Unavailable
from proxy.ledger import rows, spool
from proxy.ledger.rows import Row
from proxy.ledger.spool import Spool, SpoolFull
from proxy.ledger.store import Store
from proxy.threads import WorkThread
from usage.costs import PriceRow

logger = logging.getLogger(__name__)

STORE_SECONDS = 0.2
RETRY_SECONDS = 1.0
ROWS_PER_BATCH = 500
# How often dead workers' spools are looked for.
ADOPT_SECONDS = 5.0
SYNC_SECONDS = 0.1


class Ledger:
    """One per process. All methods are called in the loop; blocking work is done in two threads of its own."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        root = configuration.spool_dir
        self.spool = Spool(spool.new_directory(root), configuration.spool_max_bytes)
        self._store = Store(configuration.time_zone, root / "quarantine.jsonl")
        self._writer = WorkThread("ledger")
        self._syncer = WorkThread("ledger-sync")
        self._tasks: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        # Epoch seconds of the oldest row that is not in the database yet; what pages show as "as of".
        self.failing = False

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._store_for_ever(), name="ledger store"),
            asyncio.create_task(self._sync_for_ever(), name="ledger sync"),
            asyncio.create_task(self._adopt_for_ever(), name="ledger adopt"),
        ]

    def admit(self, call: Call) -> Row:
        """Opens the record of a call. Raises Unavailable where it could not be kept: the call must not be made."""
        row = rows.opened(call, self.configuration.currency)
        try:
            call.segment = self.spool.open([row, rows.price_entry(call.price)])
        except SpoolFull as exc:
            logger.warning("A call was refused because its usage could not be recorded: %s", exc)
            raise Unavailable(
                "ledger_full",
                "The gateway cannot record usage now, and does not serve unrecorded calls.",
                retry_after=5,
            ) from None
        return row

    def progress(self, call: Call) -> None:
        """Notes what a running call has produced so far."""
        tokens = call.meter.counted if call.meter is not None else 0
        name = call.backend.name if call.backend is not None else ""
        self.spool.progress([call.id, time.time(), tokens, call.bytes_out, name])

    def finish(self, call: Call, row: Row) -> None:
        self.spool.close(call.segment, rows.closed(row, call))

    @property
    def is_writable(self) -> bool:
        return self.spool.is_writable()

    @property
    def backlog(self) -> int:
        """Ended calls that are not in the database yet."""
        return sum(segment.unstored for segment in self.spool.segments)

    async def close(self, seconds: float) -> None:
        """Stores what is left, as far as that is done in time; the rest stays in the spool for the next process."""
        try:
            async with asyncio.timeout(seconds):
                while self.backlog:
                    await self._store_some()
        except (TimeoutError, DatabaseError, InterfaceError):
            logger.warning("%d records stay in the spool until the database takes them", self.backlog)
        for task in self._tasks:
            task.cancel()
        self._writer.stop(self._store.close)
        self._syncer.stop()
        self.spool.remove_if_empty()

    async def _store_for_ever(self) -> None:
        while True:
            try:
                await self._store_some()
                if self.failing:
                    logger.warning("The database takes usage records again")
                self.failing = False
                await asyncio.sleep(STORE_SECONDS)
            except (DatabaseError, InterfaceError) as exc:
                if not self.failing:
                    logger.warning("Usage records stay in the spool: the database fails (%s)", type(exc).__name__)
                self.failing = True
                self._writer.run(self._store.close)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                # Records wait in the spool; whatever it was, the next try may store them (L5).
                logger.exception("Usage records could not be stored")
                await asyncio.sleep(RETRY_SECONDS)

    async def _store_some(self) -> None:
        while (taken := self.spool.take(ROWS_PER_BATCH)) is not None:
            segment, batch = taken
            if batch:
                await self._writer.run(self._store.add, batch)
            else:
                await self._writer.run(self._store_segment, segment.path)
            self.spool.stored(segment, batch)
        self.spool.release()

    def _store_segment(self, path: Path) -> None:
        found = spool.closed_rows(path)
        for first in range(0, len(found), ROWS_PER_BATCH):
            self._store.add(found[first : first + ROWS_PER_BATCH])

    async def _sync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            if files := self.spool.dirty_files():
                await self._syncer.run(_sync, files)

    async def _adopt_for_ever(self) -> None:
        while True:
            try:
                await self._writer.run(self._adopt)
            except (DatabaseError, InterfaceError):
                pass  # said by the task that stores
            except Exception:
                logger.exception("A dead worker's spool could not be taken over")
            await asyncio.sleep(ADOPT_SECONDS)

    def _adopt(self) -> None:
        """Stores what dead processes left, in the ledger's thread."""
        for directory, descriptor in spool.orphans(self.configuration.spool_dir):
            try:
                left = left_behind(directory)
                for first in range(0, len(left), ROWS_PER_BATCH):
                    self._store.add(left[first : first + ROWS_PER_BATCH])
                shutil.rmtree(directory)
                if left:
                    logger.warning("Took over %d records of a process that is gone", len(left))
            finally:
                os.close(descriptor)


def left_behind(directory: Path) -> list[Row]:
    """One row for each call that a dead process admitted and that may not be in the database."""
    opened: dict[str, tuple[Row, PriceRow | None]] = {}
    progress: dict[str, tuple[float, int, int, str]] = {}
    closed: dict[str, Row] = {}
    for path in sorted(directory.glob("*.log")):
        for kind, value in spool.entries(path):
            if kind == "o":
                row, price = value
                opened[row[0]] = row, rows.price_of_entry(price)
            elif kind == "p":
                progress[value[0]] = tuple(value[1:])
            elif kind == "c":
                closed[value[0]] = value
    for call_id, (row, price) in opened.items():
        if call_id not in closed:
            closed[call_id] = rows.interrupted(row, price, progress.get(call_id))
    return list(closed.values())


def _sync(files: list[int]) -> None:
    for descriptor in files:
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
