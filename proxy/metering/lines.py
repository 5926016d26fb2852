"""NDJSON streams."""

import orjson

from proxy.errors import BrokenAnswer
from proxy.metering.answers import native_text
from proxy.metering.base import MAX_LINE, ReadUsage, StreamMeter


class LineMeter(StreamMeter):
    """An NDJSON stream, split on \\n and nothing else."""

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
            self.counted += -(-native_text(final) // 4) - 1
            self.complete = True
            self._usage = usage
