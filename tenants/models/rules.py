"""From where, and how much."""

from contextlib import suppress
from ipaddress import ip_network
from typing import Self

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants import money
from tenants.auditing import Audited
from tenants.models.keys import ApiKey
from tenants.models.people import Tenant, User
from tenants.moments import validate_moment


def validate_network(value: str) -> None:
    try:
        ip_network(value)
    except ValueError as exc:
        raise ValidationError(f"{exc}. Write a network such as 10.0.0.0/8, or one address.") from None


class IPRule(Audited):
    """Within a scope the longest prefix wins, deny on a tie; a scope with any allow rule denies the rest."""

    class Action(models.TextChoices):
        ALLOW = "allow"
        DENY = "deny"

    cidr = models.CharField("network", max_length=43, validators=[validate_network], help_text="E.g. 10.0.0.0/8.")
    action = models.CharField(max_length=5, choices=Action)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="ip_rules", help_text="Empty: for all."
    )
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, null=True, blank=True, related_name="ip_rules")
    acts_as = models.ForeignKey(
        ApiKey,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="acting_rules",
        help_text="Calls from this network without a key are made with this one.",
    )
    by_owners = models.BooleanField(
        "made by owners",
        default=False,
        db_default=False,  # scripts that write rules in SQL need not know it
        help_text="Whether the owners of the tenant made it, and may delete it. Theirs are a scope of their own beside "
        "those of administrators: an address must pass both, so theirs can only tighten.",
    )
    expires_at = models.DateTimeField(null=True, blank=True, validators=[validate_moment])
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "IP rule"
        constraints = [
            models.CheckConstraint(condition=Q(action__in=("allow", "deny")), name="ip_rule_action_known"),
            models.CheckConstraint(condition=Q(tenant=None) | Q(key=None), name="ip_rule_one_scope"),
            models.CheckConstraint(
                condition=Q(acts_as=None) | Q(tenant=None, key=None, action="allow"), name="ip_rule_acting_allows_all"
            ),
            models.CheckConstraint(
                condition=Q(by_owners=False) | Q(tenant__isnull=False) | Q(key__isnull=False),
                name="ip_rule_owners_have_scope",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.cidr}"

    def clean(self) -> None:
        with suppress(ValueError):  # which the field's validator reports
            self.cidr = str(ip_network(self.cidr))
        if self.acts_as_id and (self.tenant_id or self.key_id or self.action != self.Action.ALLOW):
            raise ValidationError({"acts_as": "Only a rule that allows a network for all can act as a key."})
        if self.by_owners and not (self.tenant_id or self.key_id):
            raise ValidationError({"by_owners": "Owners' rules are for their tenant, or a key of it."})
        if self.tenant_id and self.key_id:
            raise ValidationError({"key": "Choose a tenant or a key, not both."})


class LimitQuerySet(models.QuerySet["Limit"]):
    def of_key(self, key: ApiKey) -> Self:
        """All rows that may hold for calls of a key; which defaults its own replace is proxy/snapshot.py's to say."""
        user = Q(scope="user", user=key.user_id) & (Q(managed_by=None) | Q(managed_by=key.tenant_id))
        return self.filter(
            Q(scope__in=("default", "address"))
            | Q(scope="key", key=key.pk)
            | Q(scope="tenant", tenant=key.tenant_id)
            | (user if key.user_id else Q(pk__in=()))
        )


class Limit(Audited):
    """How much of one thing, in one window, for one scope. Limits of outer scopes hold as well."""

    class Scope(models.TextChoices):
        DEFAULT = "default", "each key that has no limit of its own for the same metric and window"
        TENANT = "tenant"
        USER = "user"
        KEY = "key"
        ADDRESS = "address", "each client address"

    class Metric(models.TextChoices):
        REQUESTS = "requests"
        TOKENS = "tokens"
        COST = "cost"
        CONCURRENT = "concurrent", "concurrent calls"

    class Window(models.TextChoices):
        SECONDS = "seconds", "seconds (rolling)"
        MINUTE = "minute", "calendar minute"
        HOUR = "hour", "calendar hour"
        DAY = "day", "calendar day"
        MONTH = "month", "calendar month"
        NONE = "none", "none (concurrent calls)"

    class Mode(models.TextChoices):
        ENFORCE = "enforce"
        SHADOW = "shadow", "shadow: count, never refuse"

    scope = models.CharField(max_length=10, choices=Scope)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    user = models.ForeignKey(User, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    model = models.CharField(max_length=500, blank=True, help_text="Only calls of this model. Empty: all.")
    metric = models.CharField(max_length=10, choices=Metric)
    window = models.CharField(max_length=10, choices=Window, default=Window.NONE)
    window_seconds = models.PositiveIntegerField(null=True, blank=True)
    amount = models.PositiveBigIntegerField(help_text="Cost: in nano-units. 0 refuses everything.")
    mode = models.CharField(max_length=10, choices=Mode, default=Mode.ENFORCE)
    override_amount = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="Holds in place of the amount until the moment below.",
    )
    override_until = models.DateTimeField(
        "until",
        null=True,
        blank=True,
        validators=[validate_moment],
        help_text="From then on the amount above holds again.",
    )
    alert = models.BooleanField(
        "alerts",
        default=False,
        db_default=False,
        help_text="Tell the people concerned, and webhooks, when 80 % and 100 % are used. Calendar hours, days and "
        "months only.",
    )
    managed_by = models.ForeignKey(
        Tenant,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        editable=False,
        related_name="limits_managed",
        help_text="Whose owners made it and may change it. Empty: an administrator's.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = LimitQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(scope__in=("default", "address"), tenant=None, user=None, key=None)
                | Q(scope="tenant", tenant__isnull=False, user=None, key=None)
                | Q(scope="user", tenant=None, user__isnull=False, key=None)
                | Q(scope="key", tenant=None, user=None, key__isnull=False),
                name="limit_scope_names_its_subject",
            ),
            models.CheckConstraint(
                # Not null besides > 0: a comparison with null is unknown, which a check lets pass.
                condition=Q(window="seconds", window_seconds__isnull=False, window_seconds__gt=0)
                | (~Q(window="seconds") & Q(window_seconds=None)),
                name="limit_seconds_only_for_seconds",
            ),
            models.CheckConstraint(
                condition=Q(metric="concurrent", window="none") | (~Q(metric="concurrent") & ~Q(window="none")),
                name="limit_concurrent_has_no_window",
            ),
            models.CheckConstraint(
                condition=Q(metric__in=("requests", "tokens", "cost", "concurrent")), name="limit_metric_known"
            ),
            models.CheckConstraint(
                condition=Q(window__in=("seconds", "minute", "hour", "day", "month", "none")), name="limit_window_known"
            ),
            models.CheckConstraint(condition=Q(mode__in=("enforce", "shadow")), name="limit_mode_known"),
            models.CheckConstraint(
                condition=Q(override_amount=None, override_until=None)
                | Q(override_amount__isnull=False, override_until__isnull=False),
                name="limit_override_has_an_end",
                violation_error_message="An override has an amount and an end.",
            ),
            models.CheckConstraint(
                condition=Q(alert=False) | (Q(window__in=("hour", "day", "month")) & ~Q(scope="address")),
                name="limit_alerts_for_calendar_windows",
                violation_error_message="Alerts go with calendar hours, days and months, and not with addresses.",
            ),
            models.CheckConstraint(
                condition=Q(managed_by=None) | Q(scope__in=("tenant", "user", "key")), name="limit_managed_has_subject"
            ),
        ]

    def __str__(self) -> str:
        window = f"{self.window_seconds} s" if self.window == self.Window.SECONDS else self.window
        amount = money.with_currency(self.amount) if self.metric == self.Metric.COST else f"{self.amount} {self.metric}"
        per = "" if self.metric == self.Metric.CONCURRENT else f" per {window}"
        of = f" of {self.model}" if self.model else ""
        return f"{amount}{per}{of} for {self.subject}"

    @property
    def override_holds(self) -> bool:
        return self.override_until is not None and self.override_until > timezone.now()

    @property
    def subject(self) -> str:
        return str(self.tenant or self.user or self.key or self.scope)

    def clean(self) -> None:
        subjects = {"tenant": self.tenant_id, "user": self.user_id, "key": self.key_id}
        for name, value in subjects.items():
            if (name == self.scope) != (value is not None):
                verb = "Choose the" if name == self.scope else "Leave empty: the scope is not the"
                raise ValidationError({name: f"{verb} {name}."})
        if self.managed_by_id and self.scope in (self.Scope.DEFAULT, self.Scope.ADDRESS):
            raise ValidationError(
                {"scope": f"Owners of {self.managed_by} made it: it stays for a tenant, user or key."}
            )
        if not set("*?[]").isdisjoint(self.model):
            raise ValidationError(
                {"model": "A limit holds for one model, not for a pattern: name it, as qwen3:8b, or leave this empty."}
            )
        if (self.metric == self.Metric.CONCURRENT) != (self.window == self.Window.NONE):
            raise ValidationError({"window": "Concurrent calls have no window, every other metric has one."})
        if self.window_seconds == 0 or (self.window == self.Window.SECONDS) != bool(self.window_seconds):
            raise ValidationError({"window_seconds": "Give a number of seconds for a rolling window, and only there."})
        calendar = (self.Window.HOUR, self.Window.DAY, self.Window.MONTH)
        if self.alert and (self.window not in calendar or self.scope == self.Scope.ADDRESS):
            raise ValidationError({"alert": "Alerts go with calendar hours, days and months, and not with addresses."})
        self._clean_override()

    def _clean_override(self) -> None:
        if (self.override_amount is None) != (self.override_until is None):
            raise ValidationError({"override_amount": "Give an amount and the moment it ends, or neither."})
        if self.override_amount is not None and self.amount is not None and self.override_amount <= self.amount:
            raise ValidationError({"override_amount": "An override raises the amount. To lower it, change the amount."})
