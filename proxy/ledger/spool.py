"""The spool of one worker: segments of JSON lines, each entry one write(2), so that it survives the process.

    o [row, price]                               a call was admitted
    p [id, epoch, completion tokens, bytes out, backend]   it is still running
    c row                                        it ended; the row is complete in itself

A directory per worker, locked while it lives. A segment is removed when every call it opened has ended and every
row it closed is in the database; a few calls that outlive it are written again in the current one. Notes of progress
have two files of their own, used in turn: once a round stands in the one, the other has nothing left to say.
"""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from proxy.ledger.rows import Row

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 << 20
NOTES_BYTES = 1 << 20
# How much longer the entry at the end of a call may be than the one at its beginning.
CLOSE_EXTRA = 3072
# What a disk that refused entries must take before calls are admitted again.
PROOF_BYTES = 4096
# Rows waiting for the database in memory; beyond it they are read from their segment again when it is back.
MAX_ROWS_IN_MEMORY = 20_000

_numbers = count(1)


class SpoolFull(Exception):
    """The entry could not be written: the bound is reached, or the disk refuses."""


@dataclass(slots=True, eq=False)
class Segment:
    path: Path
    fd: int
    size: int = 0
    dirty: bool = False
    open: dict[str, bytes] = field(default_factory=dict)  # entries of the calls that still run, by id
    open_bytes: int = 0
    unstored: int = 0  # closes that are not in the database yet
    rows: list[Row] = field(default_factory=list)  # of those, the ones kept in memory
    on_disk_only: bool = False  # some of them are only in the file


class Spool:
    """Touches the disk when it is first needed, and again until it is there: a full disk must not end the process.

    All methods are the loop's."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.segment_bytes = min(SEGMENT_BYTES, max_bytes // 8)
        self.notes_bytes = min(NOTES_BYTES, max_bytes // 16)
        self.directory: Path | None = None
        self.segments: list[Segment] = []
        self.size = 0
        # Why the disk refuses entries; empty while it takes them.
        self.problem = ""
        # Closes that the disk refused, by id; they are kept until it takes them or the database has them.
        self.unwritten: dict[str, tuple[Segment, bytes]] = {}
        self._lock = -1
        self._current: Segment | None = None
        self._notes: list[Segment] = []
        self._open: dict[str, Segment] = {}  # id of a running call → the segment that holds its entry
        self._reserved = 0  # bytes that the running calls may still need
        self._rows_in_memory = 0

    @property
    def running(self) -> int:
        return len(self._open)

    def open(self, row: Row, price: Any) -> None:
        """Writes the entry of an admitted call. Raises SpoolFull: then the call must not be made."""
        if self.problem:
            raise SpoolFull(self.problem)
        line = b"o" + orjson.dumps([row, price]) + b"\n"
        if not self._has_room(len(line)):
            raise SpoolFull("its bound is reached")
        try:
            segment = self._segment()
            self._write(segment, line)
        except OSError as exc:
            self._failed(exc)
            raise SpoolFull(self.problem) from exc
        self._hold(row[0], segment, line)
        self._reserved += len(line) + CLOSE_EXTRA

    def progress(self, notes: Iterable[Any]) -> None:
        """Notes how far the running calls are, all of them at once. What cannot be written is left out: the next
        round will do."""
        if not self._notes:
            return
        lines = b"".join(b"p" + orjson.dumps(note) + b"\n" for note in notes)
        if not lines or self.size + self._reserved + len(lines) > self.max_bytes:
            return
        now, other = self._notes
        try:
            if now.size <= self.notes_bytes:
                self._write(now, lines)
                return
            self._write(other, lines)
        except OSError:
            return
        self._empty(now)
        self._notes = [other, now]

    def close(self, row: Row) -> None:
        """Writes how a call ended. Never fails: what the disk refuses is kept in memory."""
        line = b"c" + orjson.dumps(row) + b"\n"
        self._let_go(row[0])
        assert self._current is not None
        segment = self._current
        try:
            self._write(segment, line)
        except OSError as exc:
            self._failed(exc)
            self.unwritten[row[0]] = segment, line
        segment.unstored += 1
        if self._rows_in_memory < MAX_ROWS_IN_MEMORY or row[0] in self.unwritten:
            segment.rows.append(row)
            self._rows_in_memory += 1
        else:
            segment.on_disk_only = True

    @property
    def is_writable(self) -> bool:
        """Whether a call of ordinary size would be admitted."""
        return not self.problem and self._has_room(CLOSE_EXTRA)

    @property
    def is_filling(self) -> bool:
        """Whether half of the bound is used."""
        return 2 * self.size > self.max_bytes

    def mend(self) -> None:
        """Tries whether the disk takes entries again; to be called now and then while there is a problem."""
        try:
            segment = self._segment()
            for call_id, (home, line) in list(self.unwritten.items()):
                self._write(home, line)
                del self.unwritten[call_id]
            # Blank lines say nothing.
            self._write(segment, b"\n" * PROOF_BYTES)
            self._empty(segment, segment.size - PROOF_BYTES)
        except OSError:
            return
        self.problem = ""
        logger.warning("The spool can be written again")

    def _has_room(self, length: int) -> bool:
        # A quarter of a segment is what carrying calls over to the current one may take for a moment.
        needed = self._reserved + 2 * length + CLOSE_EXTRA + self.segment_bytes // 4
        return self.size + needed <= self.max_bytes

    def _failed(self, exc: OSError) -> None:
        if not self.problem:
            logger.error("The spool cannot be written (%s); new calls are refused until it can", exc)
        self.problem = str(exc)

    def _hold(self, call_id: str, segment: Segment, line: bytes) -> None:
        self._open[call_id] = segment
        segment.open[call_id] = line
        segment.open_bytes += len(line)

    def _let_go(self, call_id: str) -> None:
        segment = self._open.pop(call_id)
        length = len(segment.open.pop(call_id))
        segment.open_bytes -= length
        self._reserved -= length + CLOSE_EXTRA

    def _write(self, segment: Segment, line: bytes) -> None:
        try:
            written = os.write(segment.fd, line)
        except OSError:
            self._empty(segment, segment.size)
            raise
        if written != len(line):
            # A torn line must not be the beginning of the next one.
            self._empty(segment, segment.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment.size += written
        self.size += written
        segment.dirty = True

    def _empty(self, segment: Segment, size: int = 0) -> None:
        """Cuts a file off, as far as the disk lets us."""
        try:
            os.ftruncate(segment.fd, size)
        except OSError:
            return
        self.size += size - segment.size
        segment.size = size

    # Files.

    def _segment(self) -> Segment:
        """The current segment; a new one where that has grown large. Raises OSError."""
        if self._current is None:
            self._prepare()
            self._rotate()
        elif self._current.size > self.segment_bytes:
            try:
                self._rotate()
            except OSError as exc:
                logger.debug("The segment grows on: %s", exc)
        assert self._current is not None
        return self._current

    def _prepare(self) -> None:
        """Makes and locks a directory of our own."""
        if self.directory is not None:
            return
        for last in (False, False, True):
            directory = self.root / f"{time.time_ns():x}-{os.getpid()}-{next(_numbers)}"
            directory.mkdir(parents=True)
            try:
                self._lock = lock(directory)
                self._notes = [_open_file(directory / f"progress-{number}.log") for number in (0, 1)]
            except (BlockingIOError, FileNotFoundError):
                # Another worker took it for left behind in the moment before it was locked.
                if last:
                    raise
            except OSError:
                shutil.rmtree(directory, ignore_errors=True)
                raise
            else:
                self.directory = directory
                return

    def _rotate(self) -> None:
        assert self.directory is not None
        segment = _open_file(self.directory / f"{next(_numbers):08}.log")
        self.segments.append(segment)
        self._current = segment

    # The way to the database.

    def take(self, at_most: int) -> tuple[Segment, list[Row]] | None:
        """Some rows to store, all of one segment; `stored` says when they are. None when there is nothing to do.

        No rows: those of the segment are to be read from its file again. Raises OSError."""
        for segment in self.segments:
            if segment.rows:
                return segment, segment.rows[:at_most]
            if segment.on_disk_only:
                if segment is self._current:
                    self._rotate()
                return segment, []
        return None

    def stored(self, segment: Segment, rows: list[Row]) -> None:
        """The rows are in the database; of a segment that was read again, all its rows (an empty list)."""
        if rows:
            del segment.rows[: len(rows)]
            self._rows_in_memory -= len(rows)
            segment.unstored -= len(rows)
            if self.unwritten:
                for row in rows:
                    self.unwritten.pop(row[0], None)
        else:
            segment.on_disk_only = False
            segment.unstored = len(segment.rows)
        self.release()

    def release(self) -> None:
        """Removes segments that nobody needs any more; the current one is emptied instead."""
        for segment in list(self.segments):
            if segment.unstored:
                continue
            current = segment is self._current
            if segment.open and not current and segment.open_bytes * 4 < segment.size:
                self._carry_over(segment)
            if segment.open:
                continue
            if not current:
                self.segments.remove(segment)
                self.size -= segment.size
                os.close(segment.fd)
                segment.path.unlink(missing_ok=True)
            elif segment.size:
                self._empty(segment)
        if not self._open:
            for notes in self._notes:
                if notes.size:
                    self._empty(notes)

    def _carry_over(self, segment: Segment) -> None:
        """Writes the calls of an old segment into the current one: a few that run for hours must not pin it."""
        for call_id, line in list(segment.open.items()):
            try:
                current = self._segment()
                self._write(current, line)
            except OSError:
                return
            del segment.open[call_id]
            segment.open_bytes -= len(line)
            self._hold(call_id, current, line)

    def dirty_files(self) -> list[int]:
        """Duplicates of the descriptors that were written since the last call, to be synced and closed."""
        duplicates = []
        for segment in (*self.segments, *self._notes):
            if segment.dirty:
                duplicates.append(os.dup(segment.fd))
                segment.dirty = False
        return duplicates

    def shut(self) -> None:
        """At the end of the process: removed if nothing is left to say, else left for who adopts it."""
        left = self._open or self.unwritten or any(segment.unstored for segment in self.segments)
        for segment in (*self.segments, *self._notes):
            os.close(segment.fd)
            segment.fd = -1  # a call that ends even later must not write into somebody else's file
        if self.directory is not None:
            if not left:
                shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock)


def _open_file(path: Path) -> Segment:
    return Segment(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600))


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
            if line == b"\n":
                continue
            try:
                yield chr(line[0]), orjson.loads(line[1:])
            except orjson.JSONDecodeError:
                logger.warning("A torn entry in %s was left out (%d bytes)", path.name, len(line))


def closed_rows(path: Path) -> Iterator[Row]:
    return (value for kind, value in entries(path) if kind == "c")


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
