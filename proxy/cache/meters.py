"""What a call used whose answer was not made for it alone. The machine did no work for it: its durations are 0."""

from proxy.cache.entries import Entry
from proxy.dialects.base import Usage
from proxy.metering import Counts, Meter


def _nothing(answer: object) -> Usage:
    return Usage(done=True)


class KeptMeter(Meter):
    """Of answers that were kept."""

    __slots__ = ("_counts",)

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(_nothing, 0)
        self.complete = self.whole = True
        self._counts = counts = Counts()
        for entry in entries:
            counts.prompt_tokens += entry.prompt_tokens
            counts.completion_tokens += entry.completion_tokens
            counts.estimated = counts.estimated or entry.estimated
        self.counted = counts.completion_tokens

    def counts(self) -> Counts:
        return self._counts


class SharedMeter(Meter):
    """Of an answer that was made for another."""

    __slots__ = ("_made",)

    def __init__(self, made: Meter) -> None:
        self._made = made
        super().__init__(made.read_usage, made.prompt_bytes, made.reports)
        self.complete, self.whole, self.error = made.complete, made.whole, made.error

    @property
    def counted(self) -> int:
        """As far as the other is."""
        return self._made.counted

    @counted.setter
    def counted(self, value: int) -> None:
        pass

    def counts(self) -> Counts:
        counts = self._made.counts()
        counts.load_ns = counts.prefill_ns = counts.decode_ns = 0
        return counts
