"""What every meter does."""

from collections.abc import Callable
from typing import Any

from proxy.dialects.base import Usage

# The longest line of a stream, and the largest unary answer that is read for its counts.
MAX_LINE = 8 << 20
# No model reports more tokens than this for one call; beyond it the report is odd and an estimate is used.
MAX_TOKENS = 100_000_000

ReadUsage = Callable[[dict[str, Any]], Usage]


class Counts:
    """What a call used, as far as it is known. Durations in nanoseconds."""

    __slots__ = ("completion_tokens", "decode_ns", "estimated", "load_ns", "odd", "prefill_ns", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.load_ns = 0
        self.prefill_ns = 0
        self.decode_ns = 0
        self.estimated = False
        self.odd = False  # the backend reported something impossible


class Meter:
    """Watches one answer. `feed` it each chunk and pass on what it returns; `finish`; ask `complete` and `counts()`."""

    __slots__ = ("_usage", "complete", "counted", "error", "prompt_bytes", "read_usage", "reports", "whole")

    def __init__(self, read_usage: ReadUsage, prompt_bytes: int, reports: bool = True) -> None:
        """`reports`: whether this endpoint ever reports usage; `prompt_bytes`: size of the request."""
        self.read_usage = read_usage
        self.prompt_bytes = prompt_bytes
        self.reports = reports
        self.complete = False  # the terminator was seen
        self.whole = False  # it is at least well-formed to its end
        self.error = ""  # what the backend said went wrong, in mid-answer
        self.counted = 0  # tokens produced so far, estimated
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Returns what may be passed on now."""
        raise NotImplementedError

    def finish(self) -> None:
        """The answer ended; whether it was whole shows in `complete`."""

    @property
    def produced(self) -> bool:
        """Whether the backend has done work that must not cost nothing."""
        return self.counted > 0

    def counts(self) -> Counts:
        counts = Counts()
        usage = self._usage
        prompt = completion = None
        if usage is not None:
            prompt = _bounded(usage.prompt_tokens, counts)
            completion = _bounded(usage.completion_tokens, counts)
            counts.load_ns = _bounded(usage.load_ns, counts, 10**15) or 0
            counts.prefill_ns = _bounded(usage.prefill_ns, counts, 10**15) or 0
            counts.decode_ns = _bounded(usage.decode_ns, counts, 10**15) or 0
        if not (self.reports and self.complete) or counts.odd:
            prompt = completion = None
            counts.estimated = True
        # A final object without counts is how a load and an empty embedding look; with text before it, it is not.
        if not prompt and (counts.estimated or self.produced):
            prompt = -(-self.prompt_bytes // 4)
            counts.estimated = True
        if not completion and self.counted:
            completion = self.counted
            counts.estimated = True
        counts.prompt_tokens, counts.completion_tokens = prompt or 0, completion or 0
        return counts


class StreamMeter(Meter):
    """Passes on whole lines or events only: whatever ends the stream early, what we say about it stands by itself."""

    __slots__ = ()

    # Whether it has no last object by which to tell that it is whole.
    ends_with_connection = False

    @property
    def rest(self) -> bytes:
        """What was not passed on because it has no end, where the end may be left out."""
        return b""

    @property
    def fault(self) -> str:
        """What shows in a stream without an end that the backend failed, and did not just stop; "" for nothing."""
        return ""


class NothingToMeter(Meter):
    """An answer that uses no tokens."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> None:
        self.complete = self.whole = True

    def counts(self) -> Counts:
        return Counts()


def _bounded(value: Any, counts: Counts, limit: int = MAX_TOKENS) -> int | None:
    """A reported number if it can be one; otherwise None, and the report is odd."""
    if type(value) is int and 0 <= value <= limit:
        return value
    if value is None:
        return None
    if type(value) is float and value.is_integer() and 0 <= value <= limit:
        return int(value)
    counts.odd = True
    return None
