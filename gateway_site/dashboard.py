"""What is going on, read from roll-ups and reports: a few short questions, however many calls there were."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Sum
from django.utils import timezone

from proxy.backend_state import BackendView
from proxy.models import Backend, ConfigRevision, RefusalCount, WorkerReport
from proxy.refusal_reasons import reason
from tenants.models import ApiKey, Tenant, User
from usage.models import DailyUsage, UsageBucket
from usage.rollups import bucket_start, day_of, reporting_zone

REFUSALS_SINCE = timedelta(hours=1)
MOST_REFUSALS = 8


@dataclass(frozen=True, slots=True)
class Usage:
    calls: int
    failures: int
    tokens: int
    cost_nano: int
    unpriced: int

    @property
    def failed_percent(self) -> float:
        return 100 * self.failures / self.calls if self.calls else 0


@dataclass(frozen=True, slots=True)
class Refused:
    code: str
    text: str
    count: int
    latest: datetime
    key: ApiKey | None
    prefix: str


@dataclass(frozen=True, slots=True)
class Workers:
    workers: Sequence[WorkerReport]
    revision: int

    @property
    def current(self) -> int:
        return sum(worker.revision >= self.revision for worker in self.workers)

    @property
    def calls(self) -> int:
        return sum(worker.calls for worker in self.workers)

    @property
    def waiting(self) -> int:
        return sum(worker.waiting for worker in self.workers)

    @property
    def changed_at(self) -> datetime | None:
        return max((worker.rules_of for worker in self.workers if worker.rules_of), default=None)


@dataclass(frozen=True, slots=True)
class Now:
    """What one user may see; None where they may not."""

    at: datetime
    today: Usage | None = None
    last_hour: Usage | None = None
    backends: Sequence[BackendView] | None = None
    refusals: Sequence[Refused] | None = None
    workers: Workers | None = None
    steps: Sequence[tuple[str, str]] = field(default_factory=tuple)  # (what to do next, name of the page)


def read(user: User) -> Now:
    at = timezone.now()
    fields: dict[str, Any] = {}
    if user.has_perm("usage.view_dailyusage"):
        fields["today"] = _sum(DailyUsage.objects.filter(day=day_of(at, reporting_zone())))
        fields["last_hour"] = _sum(UsageBucket.objects.filter(start__gte=bucket_start(at - timedelta(hours=1))))
    if user.has_perm("proxy.view_backend"):
        fields["backends"] = [BackendView.of(row) for row in Backend.objects.current().select_related("report")]
    if user.has_perm("proxy.view_refusalcount"):
        fields["refusals"] = _refusals(at, with_keys=user.has_perm("tenants.view_apikey"))
    if user.has_perm("proxy.view_workerreport"):
        revisions = ConfigRevision.objects.aggregate(total=Sum("revision"))["total"] or 0
        fields["workers"] = Workers(list(WorkerReport.objects.running()), revisions)
    if user.is_superuser:
        fields["steps"] = _first_steps(fields["backends"])
    return Now(at, **fields)


def _sum(rows: Any) -> Usage:
    sums = rows.aggregate(
        calls=Sum("requests"),
        failures=Sum("failures"),
        prompt=Sum("prompt_tokens"),
        completion=Sum("completion_tokens"),
        cost_nano=Sum("cost_nano"),
        unpriced=Sum("unpriced"),
    )
    sums = {name: value or 0 for name, value in sums.items()}
    tokens = sums.pop("prompt") + sums.pop("completion")
    return Usage(tokens=tokens, **sums)


def _refusals(at: datetime, *, with_keys: bool) -> list[Refused]:
    """The latest kinds of refusals of the last hour, newest first."""
    found: dict[tuple[str, str], list[Any]] = {}
    rows = RefusalCount.objects.filter(minute__gte=at - REFUSALS_SINCE).order_by("-minute")
    for minute, code, prefix, count in rows.values_list("minute", "code", "key_prefix", "count")[:2000]:
        seen = found.setdefault((code, prefix), [minute, 0])
        seen[1] += count
    latest = list(found.items())[:MOST_REFUSALS]
    keys = {}
    if with_keys:
        prefixes = [prefix for (_, prefix), _ in latest if prefix]
        keys = {key.prefix: key for key in ApiKey.objects.filter(prefix__in=prefixes)} if prefixes else {}
    return [
        Refused(code, reason(code), count, minute, keys.get(prefix), prefix)
        for (code, prefix), (minute, count) in latest
    ]


def _first_steps(backends: Sequence[BackendView]) -> list[tuple[str, str]]:
    steps = []
    if not backends:
        steps.append(("Add the first backend: an Ollama server that answers calls.", "admin:proxy_backend_add"))
    if not Tenant.objects.current().exists():
        steps.append(("Add the first tenant: a team or customer.", "admin:tenants_tenant_add"))
    if not ApiKey.objects.exists():
        steps.append(("Create the first API key: apps make their calls with it.", "admin:tenants_apikey_add"))
    return steps
