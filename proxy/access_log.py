"""One line of JSON a call, for those who search logs: ids, names, counts and durations; no prompts, no keys (L7)."""

import asyncio
import json
import logging
import os
import stat
from collections import deque
from operator import itemgetter

import orjson

from proxy.call import Call
from proxy.ledger.rows import AT, Row
from proxy.threads import WorkThread

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2
# So many lines are put together at once: done in a row it costs a third of what it costs once a call.
BATCH = 64
# Lines that wait for a reader of the log that is too slow; what comes beyond them is left out, and counted.
MOST_WAITING = 20_000
# What a pipe takes in one piece, so that lines of several processes are not mixed; a file takes more. Each piece costs
# the thread a fight for the GIL.
PIPE_BYTES = 4096
FILE_BYTES = 1 << 18

# name in the log → column of the record
_TOLD = {
    "tenant": "tenant_name",
    "backend": "backend",
    "address": "client_address",
    **{name: name for name in ("prompt_tokens", "completion_tokens", "bytes_in", "bytes_out", "attempts")},
}
_NAMES = tuple(_TOLD)
_values = itemgetter(*(AT[column] for column in _TOLD.values()))
_QUEUE, _FIRST, _TOTAL, _OURS = AT["queue_us"], AT["first_token_us"], AT["total_us"], AT["gateway_us"]
_MODEL = AT["model"]


# A call, its record if it has one, and status, outcome and error as they were when it ended.
Ended = tuple[Call, Row | None, int, str, str]


class AccessLog:
    """Writes to the standard error, as all other logs, in a thread: who reads it must not hold up calls."""

    def __init__(self, descriptor: int = 2) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._ended: list[Ended] = []
        self._waiting: deque[bytes] = deque()
        self._thread: WorkThread | None = None
        self._due: asyncio.TimerHandle | None = None

    def ended(self, call: Call, row: Row) -> None:
        """A call that has a record."""
        self._add((call, row, call.status, call.outcome, call.error))

    def answered(self, call: Call, status: int, code: str = "") -> None:
        """A request that has none."""
        self._add((call, None, status, "refused" if code else "answered", code))

    def _add(self, ended: Ended) -> None:
        self._ended.append(ended)
        if len(self._ended) >= BATCH:
            self._put_together()
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _put_together(self) -> None:
        ended, self._ended = self._ended, []
        for one in ended:
            if len(self._waiting) >= MOST_WAITING:
                self.dropped += 1
                continue
            try:
                self._waiting.append(_line(*one))
            except Exception:
                # It is another call by which this is done, and it must not fail for it (L5).
                logger.exception("There is no line for the call %s", one[0].id)
                self.dropped += 1

    def _flush(self) -> None:
        self._put_together()
        if self._thread is None:
            self._thread = WorkThread("access log")
        written = self._thread.run(self._write)
        written.add_done_callback(self._flushed)

    def _flushed(self, written: "asyncio.Future[None]") -> None:
        self._due = None
        if self._waiting or self._ended:
            self._due = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _write(self) -> None:
        waiting, at_most = self._waiting, self._piece_bytes()
        piece: list[bytes] = []
        size = 0
        while waiting:
            line = waiting.popleft()
            if piece and size + len(line) > at_most:
                self._put(b"".join(piece))
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        if piece:
            self._put(b"".join(piece))

    def _piece_bytes(self) -> int:
        try:
            return FILE_BYTES if stat.S_ISREG(os.fstat(self._descriptor).st_mode) else PIPE_BYTES
        except OSError:
            return PIPE_BYTES

    def _put(self, piece: bytes) -> None:
        try:
            os.write(self._descriptor, piece)
        except OSError:  # a full disk, a reader that is gone: there is nowhere to say so
            self.dropped += piece.count(b"\n")

    async def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._put_together()
        if self._thread is None and self._waiting:
            self._thread = WorkThread("access log")
        if self._thread is not None:
            last = self._thread.run(self._write)
            self._thread.stop()
            await asyncio.wait({last}, timeout=1)


def _line(call: Call, row: Row | None, status: int, outcome: str, error: str) -> bytes:
    said: dict[str, object] = {
        "time": call.started_text,
        "id": call.id,
        "client_id": call.client_request_id,
        "method": call.method,
        # That of the route: what somebody made up may hold anything.
        "endpoint": call.route.path if call.route is not None else "other",
        "stream": call.stream,
        "status": status,
        "outcome": outcome,
        "error": error,
    }
    if row is not None:
        said.update(zip(_NAMES, _values(row), strict=True))
    said["key"] = call.key.prefix if call.key is not None else ""
    if row is None:
        said["address"] = call.address_text or None
    else:
        said["model"] = row[_MODEL] if call.model_was_found else ""
        said["queue_ms"], said["first_token_ms"] = row[_QUEUE] / 1000, row[_FIRST] / 1000
        said["gateway_ms"], said["total_ms"] = row[_OURS] / 1000, row[_TOTAL] / 1000
    text = orjson.dumps(said)
    if not text.isascii():
        text = json.dumps(said).encode()  # control characters that are no ASCII ones (T11)
    return text + b"\n"
