"""Wall time that never steps while the process runs."""

import time


class SteadyClock:
    """Epoch seconds, counted from one reading of the wall clock by the monotonic one (threat U10)."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset
