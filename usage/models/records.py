"""One row per admitted call."""

from django.db import models
from django.db.models import Q

from tenants.models import ApiKey, Tenant, User
from usage.models.prices import Price


class Outcome(models.TextChoices):
    """How a call ended (closed set, design §11)."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled", "cancelled"
    CUT = "cut", "cut: key or right withdrawn"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted", "interrupted: the gateway died"
    REFUSED_IN_LINE = "refused_in_line", "refused while waiting"
    CACHED = "cached"
    COALESCED = "coalesced"


SUCCESSES = (Outcome.OK, Outcome.CACHED, Outcome.COALESCED)
# One by one: SQLite does not see that a question with a list fits an index with the same list.
FAILED = ~Q(outcome="ok") & ~Q(outcome="cached") & ~Q(outcome="coalesced")


def reference(to: type[models.Model], **options: object) -> models.ForeignKey:
    """A foreign key that the database does not enforce: no missing row may ever make a record unstorable.

    Without an index of its own: those that queries need are named in Meta, and each costs every call a microsecond.
    """
    return models.ForeignKey(
        to, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+", **options
    )


class UsageRecord(models.Model):
    """Durations are whole microseconds. Written by proxy/ledger alone; no form changes it."""

    id = models.UUIDField(primary_key=True, help_text="Our request id, a UUIDv7.")
    client_request_id = models.CharField(max_length=128, blank=True, help_text="The x-request-id of the client.")
    started_at = models.DateTimeField(help_text="When the call was admitted; decides bucket, price and window.")
    finished_at = models.DateTimeField()

    tenant = reference(Tenant)
    tenant_name = models.CharField(max_length=100)
    user = reference(User, null=True)
    user_name = models.CharField(max_length=150, blank=True)
    end_user = models.CharField("end-user label", max_length=128, blank=True)
    api_key = reference(ApiKey)
    key_name = models.CharField(max_length=100)
    backend = models.CharField(max_length=100, blank=True)
    model_asked = models.CharField(max_length=500)
    model = models.CharField("model served", max_length=500)
    model_digest = models.CharField(max_length=64, blank=True)

    endpoint = models.CharField(max_length=64)
    dialect = models.CharField(max_length=16)
    stream = models.BooleanField()
    status = models.PositiveSmallIntegerField()
    outcome = models.CharField(max_length=16, choices=Outcome)
    error = models.CharField(max_length=64, blank=True, help_text="Machine-readable code of what went wrong.")
    attempts = models.PositiveSmallIntegerField(default=0, help_text="How many backends it was sent to.")

    queue_us = models.PositiveBigIntegerField(default=0)
    load_us = models.PositiveBigIntegerField(default=0)
    prefill_us = models.PositiveBigIntegerField(default=0)
    decode_us = models.PositiveBigIntegerField(default=0)
    first_token_us = models.PositiveBigIntegerField(default=0)
    total_us = models.PositiveBigIntegerField(default=0)
    gateway_us = models.PositiveBigIntegerField(
        default=0, help_text="From the first byte to the dispatch, less waiting."
    )

    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    estimated = models.BooleanField(default=False, help_text="The backend did not report tokens; they are estimated.")
    bytes_in = models.PositiveBigIntegerField(default=0)
    bytes_out = models.PositiveBigIntegerField(default=0)
    client_address = models.GenericIPAddressField(null=True)
    user_agent = models.CharField(max_length=256, blank=True)

    price = reference(Price, null=True)
    cost_nano = models.BigIntegerField(null=True, help_text="Null: there was no price. That is not 0.")
    currency = models.CharField(max_length=3)
    routing = models.CharField(
        max_length=1024,
        blank=True,
        default="",
        db_default="",
        help_text="Why this backend: JSON, see usage/routing.py.",
    )

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(outcome__in=Outcome.values), name="record_outcome_known"),
        ]
        # Request lists, paged by (started_at, id): of everybody, a tenant, a key, a user; failures, which are few, of
        # everybody, a tenant, a user; an end user of a tenant. Ascending, though the newest are read first: what comes
        # last goes to the end, which is the cheapest place. Each full one costs every call some 1.5 µs.
        indexes = [
            models.Index(fields=["started_at", "id"], name="record_recent"),
            models.Index(fields=["tenant", "started_at", "id"], name="record_tenant_recent"),
            models.Index(fields=["api_key", "started_at", "id"], name="record_key_recent"),
            models.Index(
                fields=["user", "started_at", "id"], condition=Q(user__isnull=False), name="record_user_recent"
            ),
            models.Index(fields=["started_at", "id"], condition=FAILED, name="record_failures"),
            models.Index(fields=["tenant", "started_at", "id"], condition=FAILED, name="record_tenant_failures"),
            models.Index(fields=["user", "started_at", "id"], condition=FAILED, name="record_user_failures"),
            models.Index(
                fields=["tenant", "end_user", "started_at", "id"], condition=~Q(end_user=""), name="record_end_user"
            ),
            # "I have an id from my client's log."
            models.Index(
                fields=["client_request_id", "started_at", "id"],
                condition=~Q(client_request_id=""),
                name="record_client_id",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.model} {self.outcome}"
