"""Answers of routes that the gateway does not know: passed on as they come, and counted as far as they can be read."""

from typing import Any

import orjson

from proxy.dialects.base import Usage
from proxy.metering.answers import AnswerMeter
from proxy.metering.base import Meter, NothingToMeter, ReadUsage, StreamMeter

# Of a stream, at the end of which the counts stand.
TAIL = 64 << 10


def usage(answer: dict[str, Any]) -> Usage:
    """The counts in either of the two forms that Ollama has for them."""
    counts = answer.get("usage")
    if isinstance(counts, dict):
        return Usage(True, counts.get("prompt_tokens"), counts.get("completion_tokens"), error=answer.get("error"))
    return Usage(True, answer.get("prompt_eval_count"), answer.get("eval_count"), error=answer.get("error"))


def meter(content_type: bytes, prompt_bytes: int, hides_usage: bool = False) -> Meter:
    """For calls that may generate."""
    if is_stream(content_type):
        return PassedStreamMeter(usage, prompt_bytes)
    return PassedAnswerMeter(usage, prompt_bytes)


def idle_meter(content_type: bytes) -> Meter:
    """For calls that generate nothing."""
    return IdleStreamMeter(usage, 0) if is_stream(content_type) else NothingToMeter(usage, 0)


def is_stream(content_type: bytes) -> bool:
    return b"ndjson" in content_type or b"event-stream" in content_type


class PassedAnswerMeter(AnswerMeter):
    """An answer in one piece that may be anything; what is no object is as many tokens as its size says."""

    __slots__ = ()

    def finish(self) -> None:
        super().finish()
        if not self.whole:
            self.complete = self.whole = True


class PassedStreamMeter(StreamMeter):
    """How such a stream ends is not known, so that it is whole when the backend ended it in order."""

    __slots__ = ("_tail",)

    ends_with_connection = True

    def __init__(self, read_usage: ReadUsage, prompt_bytes: int) -> None:
        super().__init__(read_usage, prompt_bytes)
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        self.counted += chunk.count(b"\n")
        self._tail = (self._tail + chunk)[-TAIL:]
        return chunk

    def finish(self) -> None:
        self.complete = self.whole = True
        for line in reversed(self._tail.split(b"\n")):
            try:
                answer = orjson.loads(line.removeprefix(b"data:").strip() or b"0")
            except orjson.JSONDecodeError:
                continue
            if isinstance(answer, dict):
                self._usage = self.read_usage(answer)
                self.error = str(self._usage.error)[:4096] if self._usage.error else ""
                return


class IdleStreamMeter(StreamMeter):
    __slots__ = ()

    ends_with_connection = True

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> None:
        self.complete = self.whole = True
