"""Sums of records, written in the same transaction as the records they sum. Pages read these."""

from django.db import models
from django.db.models.functions import Coalesce

from tenants.models import ApiKey, Tenant, User
from usage.models.records import reference


class Measures(models.Model):
    requests = models.PositiveBigIntegerField(default=0)
    failures = models.PositiveBigIntegerField(default=0, help_text="Outcomes other than ok, cached and coalesced.")
    estimated = models.PositiveBigIntegerField(default=0, help_text="Requests whose tokens are estimates.")
    unpriced = models.PositiveBigIntegerField(default=0, help_text="Requests that had no price.")
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    cost_nano = models.BigIntegerField(default=0)
    decode_us = models.PositiveBigIntegerField(default=0)
    total_us = models.PositiveBigIntegerField(default=0)
    decoded_tokens = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="Of the completion tokens, those whose backend told decode_us: for speed."
    )

    class Meta:
        abstract = True


class Sums(Measures):
    tenant = reference(Tenant)
    user = reference(User, null=True)
    api_key = reference(ApiKey)
    model = models.CharField(max_length=500)
    backend = models.CharField(max_length=100, blank=True)

    class Meta:
        abstract = True


class UsageBucket(Sums):
    """15 minutes of UTC: half-hour and 45-minute zones exist."""

    start = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                "start", "tenant", "api_key", Coalesce("user", 0), "model", "backend", name="bucket_once"
            ),
        ]
        # A tenant's usage over a range; bucket_once serves the range over all tenants.
        indexes = [models.Index(fields=["tenant", "start"], name="bucket_tenant_start")]

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M} {self.model}"


class DailyUsage(Sums):
    """A day of the reporting zone (settings.TIME_ZONE)."""

    day = models.DateField()

    class Meta:
        verbose_name_plural = "daily usage"
        constraints = [
            models.UniqueConstraint(
                "day", "tenant", "api_key", Coalesce("user", 0), "model", "backend", name="daily_usage_once"
            ),
        ]
        # A tenant's usage over many days.
        indexes = [models.Index(fields=["tenant", "day"], name="daily_usage_tenant_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.model}"


class EndUserUsage(Sums):
    """A day of the reporting zone, of the calls that carried an end-user label.

    A table of its own, because most calls carry none, and records, which have the label too, are kept for 90 days:
    a month of one tenant is read in a few milliseconds here, in seconds there.
    """

    day = models.DateField()
    end_user = models.CharField("end-user label", max_length=128)

    class Meta:
        verbose_name_plural = "usage of end users"
        constraints = [
            models.UniqueConstraint(
                "day", "tenant", "api_key", Coalesce("user", 0), "model", "backend", "end_user",
                name="end_user_usage_once",
            ),
            models.CheckConstraint(condition=~models.Q(end_user=""), name="end_user_usage_has_a_label"),
        ]  # fmt: skip
        # A tenant's end users over many days.
        indexes = [models.Index(fields=["tenant", "day"], name="end_user_usage_tenant_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.end_user}"


class DailyTotal(Measures):
    """A day of the reporting zone over all tenants, by one thing at a time: what an operator looks at.

    Of 50 tenants with 8 keys each, a year is 700,000 rows of DailyUsage, which take seconds to add up; here it is one
    row a day, or one a day for each model, tenant, key, …
    """

    day = models.DateField()
    dimension = models.CharField(max_length=8, blank=True, help_text='"model", "key", …; empty: all calls of the day.')
    value = models.CharField(max_length=500, blank=True, help_text="A name, or the number of a row.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["dimension", "day", "value"], name="daily_total_once")]

    def __str__(self) -> str:
        return f"{self.day} {self.dimension} {self.value}"


class Retention(models.Model):
    """One row, once records were pruned: from when on records are complete. Before, only the roll-ups tell."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    records_since = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="retention_one_row")]

    def __str__(self) -> str:
        return f"records since {self.records_since:%Y-%m-%d %H:%M}"
