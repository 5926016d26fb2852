"""When a backend is left alone for a while (threats B11, B12). Pure: the time is handed in."""

import random
from dataclasses import dataclass, field

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 30.0
MAX_OPEN_SECONDS = 300.0


@dataclass(slots=True)
class Breaker:
    """Closed → 5 consecutive faults → open for 30 s × n, jittered → half-open: one call decides.

    It decides with the first byte of its answer; until one has ended well, the next fault opens the breaker again.
    Only faults of the backend count: connecting, loading, running. A client's fault, a cancel and "503 busy" do not.
    """

    failures: int = 0
    times_opened: int = 0
    open_until: float = 0.0
    trying: bool = False
    jitter: random.Random = field(default_factory=random.Random)

    def is_open(self, now: float) -> bool:
        """Whether a call should go elsewhere."""
        return self.open_until > now or (self.open_until > 0 and self.trying)

    def begin(self, now: float) -> bool:
        """A call is sent; True if the breaker is half-open and this is the call that decides."""
        if 0 < self.open_until <= now and not self.trying:
            self.trying = True
            return True
        return False

    def answered(self) -> None:
        """The call that decides gets a good answer, which may take an hour: others need not wait for its end."""
        self.open_until = 0.0
        self.trying = False

    def succeeded(self) -> None:
        self.failures = self.times_opened = 0
        self.open_until = 0.0
        self.trying = False

    def failed(self, now: float) -> bool:
        """Counts a fault; True if the breaker opened by it."""
        self.failures += 1
        if not self.trying and (self.failures < FAILURES_TO_OPEN or self.open_until > now):
            return False
        self.times_opened += 1
        pause = min(OPEN_SECONDS * self.times_opened, MAX_OPEN_SECONDS)
        self.open_until = now + pause * self.jitter.uniform(0.9, 1.1)
        self.trying = False
        return True

    def withdrew(self) -> None:
        """The call that was to decide ended without telling anything (a cancel): the next one decides."""
        self.trying = False
