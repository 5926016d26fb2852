"""Bounded labels: the first values of each kind keep theirs, all others are `other` (threat L8)."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

MOST = 100
OTHER = "other"
LONGEST = 200  # characters


class Labels:
    """All processes of a host agree, by the order of lines in a file that each only appends to: a value that is
    `other` for one must not have a label with the next, or counters would go backwards when one takes over from
    another. Without a file a process decides alone."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._fd = -1
        self._read = 0
        self._rest = b""

    def share(self, path: Path) -> None:
        """From now on. Raises OSError."""
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._known, self._read, self._rest = {}, 0, b""
        self._hear()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def of(self, kind: str, value: str, *, may_take: bool = True) -> str:
        """The label of a value. New ones, of which there are at most MOST of a kind, cost a write.

        `may_take`: whether it gets a label of its own if it has none.
        """
        known = self._known.setdefault(kind, {})
        shown = value[:LONGEST].replace("\n", " ")
        label = known.get(shown)
        if label is not None:
            return label
        if len(known) >= MOST or not may_take:
            return OTHER
        if self._fd < 0:
            known[shown] = shown
            return shown
        try:
            os.write(self._fd, f"{kind}\t{shown}\n".encode("utf-8", "replace"))
            self._hear()
        except OSError as exc:
            logger.debug("The label %s is not kept: %s", kind, exc)
        return known.get(shown, OTHER)

    def _hear(self) -> None:
        """Reads what was appended, by whomever."""
        while said := os.pread(self._fd, 1 << 16, self._read):
            self._read += len(said)
            *lines, self._rest = (self._rest + said).split(b"\n")
            for line in lines:
                kind, _, value = line.decode("utf-8", "replace").partition("\t")
                known = self._known.setdefault(kind, {})
                if len(known) < MOST:
                    known.setdefault(value, value)
