"""Answers in one piece."""

from collections.abc import Callable
from typing import Any

import orjson

from proxy.errors import BrokenAnswer
from proxy.metering.base import MAX_LINE, MAX_TOKENS, Meter, ReadUsage


def native_text(answer: dict[str, Any]) -> int:
    """Bytes of what was generated in an answer of Ollama's own dialect."""
    message = answer.get("message")
    source = message if isinstance(message, dict) else answer
    texts = [source.get("content"), source.get("response"), source.get("thinking")]
    size = sum(len(text.encode()) for text in texts if isinstance(text, str))
    tools = source.get("tool_calls")
    return size + len(orjson.dumps(tools)) if tools else size


class AnswerMeter(Meter):
    """A unary JSON answer."""

    __slots__ = ("_raw", "_text_bytes")

    def __init__(
        self, read_usage: ReadUsage, prompt_bytes: int, text_bytes: Callable[[dict[str, Any]], int] = native_text
    ) -> None:
        """`text_bytes`: the size of what was generated, in a whole answer."""
        super().__init__(read_usage, prompt_bytes)
        self._text_bytes = text_bytes
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
        self.counted = reported if can_be else -(-self._text_bytes(answer) // 4)


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
        # Counts only stand behind the last bracket. Before it, where it closes no empty list, is a vector (Ollama) or
        # an object that holds one (OpenAI).
        before, _, after = self._tail.rpartition(b"]")
        last = before.rstrip(b"] \r\n\t")[-1:]
        self._vectors = last.isdigit() or last == b"}"
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
