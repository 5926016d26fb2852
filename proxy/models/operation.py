"""What workers say of themselves, and what they refused. Written by proxy/worker_reports.py, off the path of calls."""

from datetime import timedelta
from typing import Any, Self

from django.db import models
from django.db.models.functions import Now

from tenants.models import IPRule

# Workers write every REPORT_SECONDS of proxy/worker_reports.py.
STALE_AFTER = timedelta(seconds=15)
KEEP_REFUSALS = timedelta(days=7)


class WorkerReportQuerySet(models.QuerySet["WorkerReport"]):
    # By the database's clock on both sides: those of the machines may differ.

    def running(self) -> Self:
        return self.filter(seen_at__gt=Now() - STALE_AFTER)

    def gone(self) -> Self:
        return self.filter(seen_at__lte=Now() - STALE_AFTER)


class WorkerReport(models.Model):
    """A process that serves calls now."""

    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    # Sum of the revisions of all tables: it grows with each change, and is equal where the rules are equal.
    revision = models.BigIntegerField(help_text="Of the rules it works with.")
    rules_of = models.DateTimeField(null=True, help_text="When the rules it works with were last changed.")
    listens = models.JSONField(default=list, help_text="Addresses and ports.")
    calls = models.PositiveIntegerField(default=0, help_text="Calls in flight.")
    waiting = models.PositiveIntegerField(default=0, help_text="Calls in its line.")
    cache = models.JSONField(default=dict, help_text="What it keeps of answers.")
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()

    objects = WorkerReportQuerySet.as_manager()

    class Meta:
        verbose_name = "worker"
        ordering = ["host", "pid"]
        constraints = [models.UniqueConstraint(fields=["host", "pid"], name="worker_reports_once")]

    def __str__(self) -> str:
        return f"{self.host} {self.pid}"


class RefusalCountQuerySet(models.QuerySet["RefusalCount"]):
    def by_code(self) -> list[dict[str, Any]]:
        """code, total, latest (minute) of each reason, the most frequent first."""
        sums = self.order_by().values("code").annotate(total=models.Sum("count"), latest=models.Max("minute"))
        return list(sums.order_by("-total", "code"))


class RefusalCount(models.Model):
    """Calls refused before they were admitted, in one minute. They have no records."""

    minute = models.DateTimeField()
    code = models.CharField("reason", max_length=64)
    key_prefix = models.CharField(
        max_length=16, blank=True, help_text="Public part of the key. Empty: none was recognised."
    )
    count = models.PositiveBigIntegerField(default=0)

    objects = RefusalCountQuerySet.as_manager()

    class Meta:
        verbose_name = "refusal"
        ordering = ["-minute", "code", "key_prefix"]
        constraints = [
            # Serves the newest minutes, too.
            models.UniqueConstraint(fields=["minute", "code", "key_prefix"], name="refusal_once_per_minute"),
        ]
        # What a key was refused for, on its page.
        indexes = [models.Index(fields=["key_prefix", "-minute"], name="refusal_of_key")]

    def __str__(self) -> str:
        return f"{self.count} × {self.code} at {self.minute:%Y-%m-%d %H:%M}"


class IPRuleUseQuerySet(models.QuerySet["IPRuleUse"]):
    def of_deleted_rules(self) -> Self:
        return self.exclude(rule_id__in=IPRule.objects.using(self.db).values("pk"))


class IPRuleUse(models.Model):
    """How often an IP rule decided about a call or a page. Apart from the rule: a change of a rule is one of the rules
    in force, which every worker then reads anew. Rows of deleted rules are removed by the workers."""

    rule = models.OneToOneField(
        IPRule, on_delete=models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="use"
    )
    hits = models.PositiveBigIntegerField(default=0)
    last_at = models.DateTimeField(help_text="To within some seconds.")

    objects = IPRuleUseQuerySet.as_manager()

    class Meta:
        verbose_name = "use of an IP rule"

    def __str__(self) -> str:
        return f"{self.hits} × {self.rule_id}"
