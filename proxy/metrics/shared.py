"""The numbers of all processes of a host: each writes its own into a file, and whoever is asked adds them up.

    HOST/lock             held while files are taken away, shared while they are read
    HOST/labels           which values have a label (labels.py)
    HOST/NAME.alive       locked by the process as long as it lives
    HOST/NAME.json        what it has counted so far, replaced as a whole
    HOST/past.json        the sum of processes that are gone, and which those were

Counters never go backwards while one process lives: what a dead one has told stays in the sum. When the last one has
gone, the next begins anew.
"""

import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from proxy.metrics.tally import Sum

logger = logging.getLogger(__name__)

# A directory of a host that nobody has written to for so long belongs to a container that is gone.
ABANDONED_SECONDS = 3600.0
# How long (seconds) another process may hold the lock.
LOCK_PATIENCE = 0.5
# Of what is told. Another version of the program counts other things: its numbers are not added to ours.
FORM = 1

Told = dict[str, Any]


class SharedNumbers:
    """Not the loop's: all of it reads and writes files. `write` may be called by several threads."""

    def __init__(self, root: Path, host: str) -> None:
        self.directory = root / "".join(char if char.isalnum() or char in "-." else "_" for char in host)
        self.name = f"{time.time_ns():x}-{os.getpid()}"
        self._alive = -1
        self._writing = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._alive >= 0

    @property
    def labels(self) -> Path:
        return self.directory / "labels"

    def open(self) -> None:
        """Joins the processes of this host. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_EX):
            if not any(is_alive(path) for path in self.directory.glob("*.alive")):
                for path in self.directory.iterdir():
                    if path.name != "lock":
                        path.unlink(missing_ok=True)
            alive = os.open(self.directory / f"{self.name}.alive", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(alive, fcntl.LOCK_EX)
            self._alive = alive
        self._remove_abandoned()

    def write(self, tell: Callable[[], Told]) -> None:
        """Replaces what is known of this process by what `tell()` returns. Raises OSError."""
        with self._writing:
            if self._alive < 0:
                return
            # Asked for in here: of two that write at the same time, the second must not be the older one.
            draft = self.directory / f"{self.name}.draft"
            draft.write_bytes(orjson.dumps({"form": FORM, **tell()}))
            draft.replace(self.directory / f"{self.name}.json")

    def read(self, *, others_only: bool = False) -> tuple[list[Told], list[Told]]:
        """(what processes that live have told, what those have that are gone). Raises OSError."""
        living: list[Told] = []
        gone: list[Told] = []
        with self._locked(fcntl.LOCK_SH):
            past = _read(self.directory / "past.json")
            if past is not None:
                gone.append(past)
            for path in self._files(past):
                told = None if others_only and path.stem == self.name else _read(path)
                if told is not None:
                    (living if is_alive(path.with_suffix(".alive")) else gone).append(told)
        return living, gone

    def fold(self) -> None:
        """Takes over what processes that are gone have told, so that their files need not stay. Raises OSError."""
        if all(is_alive(path) for path in self.directory.glob("*.alive")):
            return
        with self._locked(fcntl.LOCK_EX):
            past = _read(self.directory / "past.json")
            dead = [path for path in self._files(past) if not is_alive(path.with_suffix(".alive"))]
            total = Sum()
            tellings = [told for told in (past, *map(_read, dead)) if told is not None]
            for told in tellings:
                total.add(told)
            pages = [lasting(told["pages"]) for told in tellings]
            names = [path.stem for path in dead]
            if names:
                draft = self.directory / "past.draft"
                said = {"form": FORM, "taken": names, "pages": added_pages(pages), **total.told()}
                draft.write_bytes(orjson.dumps(said))
                draft.replace(self.directory / "past.json")
            # Whoever dies here leaves files that are named in the sum, and not read any more.
            for path in self.directory.glob("*.alive"):
                if not is_alive(path):
                    for suffix in (".json", ".draft", ".alive"):
                        path.with_suffix(suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """The process is gone for the others; what it has told stays."""
        with self._writing:
            if self._alive >= 0:
                os.close(self._alive)
                self._alive = -1

    def _files(self, past: Told | None) -> list[Path]:
        taken = set(past["taken"]) if past is not None else set()
        found = sorted(self.directory.glob("*.json"))
        return [path for path in found if path.stem not in taken and path.stem != "past"]

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(lock, how)
            yield
        finally:
            os.close(lock)

    def _remove_abandoned(self) -> None:
        for path in self.directory.parent.iterdir():
            with suppress(FileNotFoundError):  # others begin at the same moment, and remove them, too
                if path != self.directory and path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _wait_for(lock: int, how: int) -> None:
    """It is held for milliseconds, but for a process that was stopped. Raises TimeoutError, which is an OSError."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("the metrics of this host are locked by another process") from None
            time.sleep(0.005)
        else:
            return


def is_alive(path: Path) -> bool:
    """Whether the process lives that holds a file of the name NAME.alive."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _read(path: Path) -> Told | None:
    try:
        told = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return told if isinstance(told, dict) and told.get("form") == FORM else None


# Families of prometheus_client, as the pages of Django count: [name, help, type, [[name of sample, labels, value], …]].
Pages = list[list[Any]]

# Of values that processes have in common, or of which a sum says nothing.
_OLDEST = "process_start_time_seconds"
_ONE_IS_ENOUGH = ("python_info", "process_max_fds")


def lasting(pages: Pages) -> Pages:
    """What still counts when its process is gone: how much memory it had does not."""
    return [family for family in pages if family[2] in ("counter", "histogram")]


def added_pages(tellings: list[Pages]) -> Pages:
    """The families of several processes as one."""
    families: dict[str, list[Any]] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for pages in tellings:
        for name, documentation, kind, found in pages:
            families.setdefault(name, [name, documentation, kind])
            values = samples.setdefault(name, {})
            for sample, labels, value in found:
                key = (sample, tuple(sorted(labels.items())))
                if key not in values:
                    values[key] = value
                elif name == _OLDEST:
                    values[key] = min(values[key], value)
                elif name not in _ONE_IS_ENOUGH:
                    values[key] += value
    return [
        [*family, [[sample, dict(labels), value] for (sample, labels), value in samples[name].items()]]
        for name, family in families.items()
    ]
