"""Token counts, read from the bytes as they pass (ollama-api §2.4). Pure: bytes in, counts out.

A stream costs a count and a search per chunk; only its last line is parsed. Where a backend reports nothing the
counts are estimates and say so: prompt = bytes / 4, which is what Ollama itself guesses; output = one token per
line of the stream that carries text, or bytes / 4 of an answer that is no stream.
"""

from collections.abc import Callable
from typing import Any

import orjson

from proxy.dialects.base import Usage
from proxy.errors import BrokenAnswer

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
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= limit:
        return value
    counts.odd = True
    return None


class LineMeter(Meter):
    """An NDJSON stream, split on \\n and nothing else.

    Passes on whole lines only: whatever ends the stream early, what we say about it is then a line of its own.
    """

    __slots__ = ("_last", "_line")

    def __init__(self, read_usage: ReadUsage, prompt_bytes: int) -> None:
        super().__init__(read_usage, prompt_bytes)
        self._line = bytearray()  # the line that has no end yet
        self._last = b""  # the last whole line that is not blank

    def feed(self, chunk: bytes) -> bytes:
        # Most chunks are one whole line.
        if not self._line and chunk.count(b"\n") == 1 and chunk.endswith(b"}\n"):
            self.counted += 1
            self._last = chunk
            return chunk
        if self._line or not chunk.endswith(b"\n"):
            chunk = self._whole_lines(chunk)
        if chunk.count(b"\n") > 1:
            for line in chunk.split(b"\n"):
                self._note(line)
        else:
            self._note(chunk)
        return chunk

    def _note(self, line: bytes) -> None:
        if line and not line.isspace():
            self.counted += 1
            self._last = line

    def _whole_lines(self, chunk: bytes) -> bytes:
        end = chunk.rfind(b"\n") + 1
        lines = b""
        if end:
            lines = bytes(self._line) + chunk[:end]
            self._line.clear()
        self._line += chunk[end:]
        if len(self._line) > MAX_LINE:
            raise BrokenAnswer(f"a line of more than {MAX_LINE} bytes")
        return lines

    @property
    def rest(self) -> bytes:
        """What was not passed on because its line has no end."""
        return bytes(self._line)

    def finish(self) -> None:
        self._note(self.rest)
        try:
            final = orjson.loads(self._last)
        except orjson.JSONDecodeError:
            return
        if not isinstance(final, dict):
            return
        usage = self.read_usage(final)
        if usage.error:
            self.error = str(usage.error)[:4096]
            self.counted -= 1
        elif usage.done and "done" in final:
            # The final line carries counts; text only where the answer is one line.
            self.counted += -(-_text_bytes(final) // 4) - 1
            self.complete = True
            self._usage = usage


class AnswerMeter(Meter):
    """A unary JSON answer."""

    __slots__ = ("_raw",)

    def __init__(self, read_usage: ReadUsage, prompt_bytes: int, reports: bool = True) -> None:
        super().__init__(read_usage, prompt_bytes, reports)
        self._raw = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        self._raw += chunk
        if len(self._raw) > MAX_LINE:
            raise BrokenAnswer(f"an answer of more than {MAX_LINE} bytes")
        self.counted = -(-len(self._raw) // 4)
        return chunk

    def finish(self) -> None:
        raw, self._raw = self._raw, bytearray()
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            return
        usage = self.read_usage(answer)
        self._usage = usage
        self.whole = True
        self.complete = usage.done and not usage.error
        self.error = str(usage.error)[:4096] if usage.error else ""
        # What was generated is only weighed where the backend does not say.
        reported = usage.completion_tokens
        can_be = type(reported) is int and 0 < reported <= MAX_TOKENS
        self.counted = reported if can_be else -(-_text_bytes(answer) // 4)


def _text_bytes(answer: dict[str, Any]) -> int:
    """Size of what was generated in a native answer."""
    message = answer.get("message")
    source = message if isinstance(message, dict) else answer
    texts = [source.get("content"), source.get("response"), source.get("thinking")]
    size = sum(len(text.encode()) for text in texts if isinstance(text, str))
    tools = source.get("tool_calls")
    return size + len(orjson.dumps(tools)) if tools else size


class EmbeddingMeter(Meter):
    """Vectors, which may be tens of megabytes: only what follows the last of them is read."""

    __slots__ = ("_head", "_tail", "_vectors")

    TAIL = 4096

    def __init__(self, read_usage: ReadUsage, prompt_bytes: int, reports: bool = True) -> None:
        super().__init__(read_usage, prompt_bytes, reports)
        self._head = b""
        self._tail = b""
        self._vectors = False

    @property
    def produced(self) -> bool:
        return self._vectors

    def feed(self, chunk: bytes) -> bytes:
        if not self._head:
            self._head = chunk[:1]
        self._tail = (self._tail + chunk)[-self.TAIL :] if len(chunk) < self.TAIL else chunk[-self.TAIL :]
        return chunk

    def finish(self) -> None:
        # Numbers only stand between the brackets, so the last one closes the last vector.
        before, _, after = self._tail.rpartition(b"]")
        self._vectors = before.rstrip(b"] \r\n\t")[-1:].isdigit()
        after = after.strip()
        if self._head != b"{" or not after.endswith(b"}"):
            return
        try:
            rest = orjson.loads(b"{" + after.lstrip(b","))
        except orjson.JSONDecodeError:
            return
        usage = self.read_usage(rest)
        self.whole = True
        self.complete = not usage.error
        self._usage = usage
