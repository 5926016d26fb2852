"""The spool of one worker: segments of JSON lines, each entry one write(2), so that it survives the process.

    o [row, price]                               a call was admitted
    p [id, epoch, completion tokens, bytes out, backend]   it is still running
    c row                                        it ended; the row is complete in itself

A directory per worker, locked while it lives. A segment is removed when every call it opened has ended and every
row it closed is in the database.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from proxy.ledger.rows import Row

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 << 20
# Kept free for what the running calls still have to say.
RESERVE_PER_CALL = 2048
# Rows waiting for the database in memory; beyond it they are read from their segment again when it is back.
MAX_ROWS_IN_MEMORY = 20_000


class SpoolFull(Exception):
    """The entry could not be written: the bound is reached, or the disk refuses."""


@dataclass(slots=True, eq=False)
class Segment:
    path: Path
    fd: int
    size: int = 0
    open_calls: int = 0
    unstored: int = 0  # closes that are not in the database yet
    rows: list[Row] = field(default_factory=list)  # of those, the ones kept in memory
    on_disk_only: bool = False  # some of them are only in the file
    dirty: bool = False


class Spool:
    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Makes `directory` and locks it. Raises OSError."""
        directory.mkdir(parents=True)
        self.directory = directory
        self.max_bytes = max_bytes
        self._lock = lock(directory)
        self._number = 0
        self.running = 0
        self.segments: list[Segment] = []
        self._rows_in_memory = 0
        # Closes that the disk refused; they are kept until it takes them or the database has them.
        self.unwritten: list[bytes] = []
        self._current = self._new_segment()

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def open(self, entry: Any) -> Segment:
        """Writes the entry of an admitted call. Raises SpoolFull: then the call must not be made."""
        if self.unwritten and not self._retry():
            raise SpoolFull("an earlier entry could not be written")
        if self.size + (self.running + 1) * RESERVE_PER_CALL > self.max_bytes:
            raise SpoolFull("its bound is reached")
        if self._current.size > SEGMENT_BYTES:
            self._current = self._new_segment()
        segment = self._current
        try:
            self._write(segment, b"o" + orjson.dumps(entry) + b"\n")
        except OSError as exc:
            raise SpoolFull(str(exc)) from exc
        segment.open_calls += 1
        self.running += 1
        return segment

    def progress(self, entry: Any) -> None:
        """Notes how far a running call is. What cannot be written is left out: the next note will do."""
        try:
            self._write(self._current, b"p" + orjson.dumps(entry) + b"\n")
        except OSError:
            pass

    def close(self, opened_in: Segment, row: Row) -> None:
        """Writes how a call ended. Never fails: what the disk refuses is kept in memory."""
        self.running -= 1
        opened_in.open_calls -= 1
        segment = self._current
        line = b"c" + orjson.dumps(row) + b"\n"
        try:
            self._write(segment, line)
        except OSError as exc:
            if not self.unwritten:
                logger.error("The spool cannot be written (%s); new calls are refused until it can", exc)  # noqa: TRY400
            self.unwritten.append(line)
        segment.unstored += 1
        if self._rows_in_memory < MAX_ROWS_IN_MEMORY or self.unwritten:
            segment.rows.append(row)
            self._rows_in_memory += 1
        else:
            segment.on_disk_only = True

    def _write(self, segment: Segment, line: bytes) -> None:
        try:
            written = os.write(segment.fd, line)
        except OSError:
            os.ftruncate(segment.fd, segment.size)
            raise
        if written != len(line):
            # A torn line must not be the beginning of the next one.
            os.ftruncate(segment.fd, segment.size)
            raise OSError(28, "the disk is full")
        segment.size += written
        segment.dirty = True

    def _retry(self) -> bool:
        """Writes what the disk refused before; True when nothing is left over."""
        while self.unwritten:
            try:
                self._write(self._current, self.unwritten[0])
            except OSError:
                return False
            self.unwritten.pop(0)
        logger.warning("The spool can be written again")
        return True

    def is_writable(self) -> bool:
        return not self.unwritten or self._retry()

    def _new_segment(self) -> Segment:
        self._number += 1
        path = self.directory / f"{self._number:08}.log"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        segment = Segment(path, os.open(path, flags, 0o600))
        self.segments.append(segment)
        return segment

    # The way to the database.

    def take(self, at_most: int) -> tuple[Segment, list[Row]] | None:
        """Some rows to store, all of one segment; `stored` says when they are. None when there is nothing to do."""
        for segment in self.segments:
            if segment.rows:
                return segment, segment.rows[:at_most]
            if segment.on_disk_only and segment is not self._current:
                return segment, []  # to be read again, whole
            if segment.on_disk_only:
                self._current = self._new_segment()
                return segment, []
        return None

    def stored(self, segment: Segment, rows: list[Row]) -> None:
        """The rows are in the database; of a segment that was read again, all its rows (an empty list)."""
        if rows:
            del segment.rows[: len(rows)]
            self._rows_in_memory -= len(rows)
            segment.unstored -= len(rows)
        else:
            segment.on_disk_only = False
            segment.unstored = len(segment.rows)
        self.release()

    def release(self) -> None:
        """Removes segments that nobody needs any more; the current one is emptied instead."""
        for segment in list(self.segments):
            if segment.open_calls or segment.unstored or (segment is self._current and self.unwritten):
                continue
            if segment is not self._current:
                self.segments.remove(segment)
                os.close(segment.fd)
                segment.path.unlink(missing_ok=True)
            elif segment.size:
                os.ftruncate(segment.fd, 0)
                segment.size = 0

    def dirty_files(self) -> list[int]:
        """Duplicates of the descriptors that were written since the last call, to be synced and closed."""
        dirty = [segment for segment in self.segments if segment.dirty]
        for segment in dirty:
            segment.dirty = False
        return [os.dup(segment.fd) for segment in dirty]

    def remove_if_empty(self) -> None:
        """At the end of the process: nothing is left to say."""
        left = self.running or self.unwritten or any(segment.unstored for segment in self.segments)
        for segment in self.segments:
            os.close(segment.fd)
        if not left:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def lock(directory: Path) -> int:
    """The descriptor that holds a directory's lock. Raises BlockingIOError where its owner lives."""
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(kind, value) of each whole line of a segment. A torn last line is what a crash leaves; it was never promised."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield chr(line[0]), orjson.loads(line[1:])
            except (orjson.JSONDecodeError, IndexError):
                logger.warning("A torn entry in %s was left out (%d bytes)", path.name, len(line))


def closed_rows(path: Path) -> list[Row]:
    return [value for kind, value in entries(path) if kind == "c"]


def orphans(root: Path) -> Iterator[tuple[Path, int]]:
    """(directory, lock) of the spools whose process is gone. Whoever takes one removes it and closes the lock."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        # A directory without a lock is just being made, or just being removed.
        if not (directory / "lock").exists():
            continue
        try:
            descriptor = lock(directory)
        except OSError:
            continue
        if (directory / "lock").exists():
            yield directory, descriptor
        else:
            os.close(descriptor)


def new_directory(root: Path) -> Path:
    return root / f"{time.time_ns():x}-{os.getpid()}"
