"""Wall time that never steps while the process runs."""

import time
from collections.abc import Callable
from functools import partial

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
