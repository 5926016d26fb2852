"""What is counted of calls that are alike: one list of whole numbers, a place for each sum and each bucket. Pure."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
SHORT_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1 << 20, 4 << 20, 16 << 20)

MICRO = 1_000_000
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Histogram:
    """Where one stands in the list: its sum at `sum`, its buckets from `first` on, the last one for what is above."""

    sum: int
    first: int
    bounds: tuple[int, ...]  # in the unit that is counted in
    shown: tuple[float, ...]  # the same in the unit that is shown
    scale: int

    @property
    def end(self) -> int:
        return self.first + len(self.bounds) + 1

    def bucket(self, value: int) -> int:
        """The place to count a value at."""
        return self.first + bisect_left(self.bounds, value)

    def read(self, values: Sequence[int]) -> tuple[list[int], float]:
        """(calls in each bucket, sum in the unit that is shown)"""
        return list(values[self.first : self.end]), values[self.sum] / self.scale


def _after(at: int, shown: Sequence[float], scale: int) -> Histogram:
    return Histogram(at, at + 1, tuple(round(bound * scale) for bound in shown), tuple(shown), scale)


# Sums that are no histogram's.
COUNT, COST_NANO = 0, 1

DURATION = _after(2, SECONDS, MICRO)
FIRST_TOKEN = _after(DURATION.end, SECONDS, MICRO)  # of streams
WAIT = _after(FIRST_TOKEN.end, SECONDS, MICRO)  # in line, of all calls that were admitted
LOAD = _after(WAIT.end, SECONDS, MICRO)  # of the model
OVERHEAD = _after(LOAD.end, SHORT_SECONDS, MICRO)  # the gateway's own part
PER_TOKEN = _after(OVERHEAD.end, SHORT_SECONDS, MICRO)  # of output
PROMPT = _after(PER_TOKEN.end, TOKENS, 1)
COMPLETION = _after(PROMPT.end, TOKENS, 1)
RATE = _after(COMPLETION.end, RATES, MILLI)  # tokens a second
BYTES_IN = _after(RATE.end, BYTES, 1)
BYTES_OUT = _after(BYTES_IN.end, BYTES, 1)

SIZE = BYTES_OUT.end
