"""Wall time that never steps while the process runs, and how a moment is written."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache, partial

# Goes on while the machine sleeps, where the system has such a clock: days that were slept through are over.
since_boot: Callable[[], float] = time.monotonic
if hasattr(time, "CLOCK_BOOTTIME"):
    since_boot = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class SteadyClock:
    """Epoch seconds, counted from one reading of the wall clock by one that is never set (threat U10)."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self._steady = steady
        self._offset = wall() - steady()

    def __call__(self) -> float:
        return self._steady() + self._offset


def in_utc(epoch: float, between: str = "T") -> str:
    """2026-03-10T12:00:00.000000, without a zone. Most moments of a second share its text."""
    second = int(epoch)
    return f"{_second(second, between)}.{int((epoch - second) * 1_000_000):06d}"


def all_in_utc(epochs: Iterable[float], between: str = "T") -> list[str]:
    """As in_utc of each; those of one second after the other look its text up once."""
    texts, last, text = [], -1, ""
    for epoch in epochs:
        second = int(epoch)
        if second != last:
            last, text = second, _second(second, between)
        texts.append(f"{text}.{int((epoch - second) * 1_000_000):06d}")
    return texts


@lru_cache(maxsize=256)
def _second(epoch: int, between: str) -> str:
    return datetime.fromtimestamp(epoch, UTC).replace(tzinfo=None).isoformat(between)
