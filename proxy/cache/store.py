"""Answers in the memory of one process: the least recently used go when there are too many bytes of them."""

from collections import OrderedDict
from collections.abc import Callable

from proxy.cache.entries import Entry


class Counts:
    """Since the process started, but for `entries` and `bytes`, which are of now."""

    __slots__ = (
        "bypassed",
        "bytes",
        "coalesced",
        "entries",
        "evictions",
        "hits",
        "misses",
        "saved_gpu_us",
        "saved_tokens",
    )

    def __init__(self) -> None:
        self.hits = 0  # calls answered from what is kept
        self.misses = 0  # calls that could have been, and were generated
        self.coalesced = 0  # calls that shared the answer of one in flight
        self.bypassed = 0  # calls of keys with a policy that it does not hold for, or that asked to be left out
        self.entries = 0
        self.bytes = 0
        self.evictions = 0  # to make room
        self.saved_gpu_us = 0
        self.saved_tokens = 0


class MemoryStore:
    def __init__(self, max_bytes: int, counts: Counts) -> None:
        self.max_bytes = max_bytes
        # No single answer pushes many others out.
        self.max_entry = min(max_bytes // 8, 4 << 20)
        self._counts = counts
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def get(self, key: bytes, now: float, ttl_seconds: float) -> Entry | None:
        """`now`: epoch seconds. One that is too old is dropped."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now - entry.kept_at >= ttl_seconds:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        if entry.size > self.max_entry:
            return
        self._drop(key)
        self._entries[key] = entry
        counts = self._counts
        counts.bytes += entry.size
        counts.entries += 1
        while counts.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            counts.evictions += 1

    def drop_those(self, is_meant: Callable[[Entry], bool]) -> int:
        """Returns how many were dropped."""
        meant = [key for key, entry in self._entries.items() if is_meant(entry)]
        for key in meant:
            self._drop(key)
        return len(meant)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._counts.bytes -= entry.size
            self._counts.entries -= 1
