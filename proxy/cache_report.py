"""What the cache does, for its page in the admin: from what the workers have told the database."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from proxy.models import CacheUse, WorkerReport

DAYS = 30


@dataclass(frozen=True, slots=True)
class Did:
    """In some days."""

    hits: int
    misses: int
    coalesced: int
    bypassed: int
    saved_gpu_us: int
    saved_tokens: int

    @property
    def asked(self) -> int:
        """Calls that could be answered from what is kept."""
        return self.hits + self.misses + self.coalesced

    @property
    def percent(self) -> float:
        """Of them, those for which nothing was generated."""
        return 100 * (self.hits + self.coalesced) / self.asked if self.asked else 0.0

    @property
    def saved_gpu_seconds(self) -> int:
        return self.saved_gpu_us // 1_000_000


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that serves calls now."""

    name: str
    entries: int
    bytes: int
    max_bytes: int
    evictions: int
    flights: int
    redis: str


@dataclass(frozen=True, slots=True)
class CacheReport:
    today: Did
    lately: Did
    workers: list[Worker]

    @property
    def entries(self) -> int:
        return sum(worker.entries for worker in self.workers)

    @property
    def bytes(self) -> int:
        return sum(worker.bytes for worker in self.workers)

    @property
    def max_bytes(self) -> int:
        return sum(worker.max_bytes for worker in self.workers)


def read() -> CacheReport:
    today = datetime.now(UTC).date()
    return CacheReport(
        Did(**CacheUse.objects.filter(day=today).sums()),
        Did(**CacheUse.objects.filter(day__gt=today - timedelta(days=DAYS)).sums()),
        [_worker(report) for report in WorkerReport.objects.running()],
    )


def _worker(report: WorkerReport) -> Worker:
    kept: dict[str, Any] = report.cache if isinstance(report.cache, dict) else {}

    def number(name: str) -> int:
        value = kept.get(name)
        return value if isinstance(value, int) else 0

    redis = {"shared": "shared", "away": "does not answer"}.get(str(kept.get("redis")), "not used")
    return Worker(
        str(report), number("entries"), number("bytes"), number("max_bytes"), number("evictions"), number("flights"),
        redis,
    )  # fmt: skip
