"""Streams that tell how far a pull, a push or a create has come. They use no tokens."""

import orjson

from proxy.dialects.base import Usage
from proxy.metering.base import Counts
from proxy.metering.lines import LineMeter


def _no_usage(line: dict[str, object]) -> Usage:
    return Usage(done=False)


class ProgressMeter(LineMeter):
    """Complete when its last line says so: one that ends without `success` has failed, whatever its status was."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_no_usage, 0)

    def feed(self, chunk: bytes) -> bytes:
        lines = super().feed(chunk)
        self.counted = 0
        return lines

    @property
    def last(self) -> bytes:
        """The last line."""
        return self._last.strip()

    def finish(self) -> None:
        self._note(self.rest)
        self.counted = 0
        try:
            final = orjson.loads(self._last)
        except orjson.JSONDecodeError:
            return
        if not isinstance(final, dict):
            return
        if final.get("error"):
            self.error = str(final["error"])[:4096]
        else:
            self.whole = self.complete = final.get("status") == "success"

    def counts(self) -> Counts:
        return Counts()
