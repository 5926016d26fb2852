"""API keys, without their clear text (see tenants/keys.py)."""

from datetime import datetime
from typing import Self

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from tenants.auditing import Audited, change
from tenants.models.people import WEIGHTS, Authority, CachePolicy, LatencyClass, Tenant, User
from tenants.moments import validate_moment


def validate_model_names(value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise ValidationError('Write a list of names or patterns, e.g. ["llama3.2", "qwen3:*"].')


def bounded_by(help_text: str) -> models.CharField:
    """Who set the column before it, where that bounds the key (tenants/authority.py)."""
    return models.CharField(
        max_length=13,
        choices=Authority,
        # The strictest: whoever writes rows without saying so is an administrator's program.
        default=Authority.ADMINISTRATOR,
        db_default=Authority.ADMINISTRATOR,
        editable=False,
        help_text=help_text,
    )


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def visible_to(self, user: User) -> Self:
        """What a person sees and manages: all keys of the tenants they own, their own where they are a member."""
        return self.filter(Q(tenant__in=user.tenants_owned()) | Q(user=user, tenant__in=user.tenants_for_keys()))

    def usable(self, now: datetime | None = None) -> Self:
        """Enabled, neither revoked nor expired, of a tenant and a user that are not switched off."""
        now = now or timezone.now()
        return self.filter(
            Q(expires_at=None) | Q(expires_at__gt=now),
            Q(user=None) | Q(user__is_active=True),
            enabled=True,
            revoked_at=None,
            tenant__enabled=True,
            tenant__archived_at=None,
        )

    def revoke(self) -> int:
        """Revokes the keys that are not; returns how many."""
        return change(self.filter(revoked_at=None), revoked_at=timezone.now())


class ApiKey(Audited):
    """What a call is made with. The secret is shown once; the row keeps its digest."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="keys")
    user = models.ForeignKey(
        User,
        on_delete=models.PROTECT,
        related_name="keys",
        null=True,
        blank=True,
        help_text="Whose key it is. Empty: a service key of the tenant.",
    )
    name = models.CharField(max_length=100, help_text="What it is used for, e.g. “CI of the web team”.")
    prefix = models.CharField(max_length=16, unique=True, editable=False, help_text="The public part of the key.")
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    # The secret before the last rotation, which goes on working until the overlap ends.
    previous_digest = models.BinaryField(max_length=32, unique=True, null=True, editable=False)
    previous_expires_at = models.DateTimeField(null=True, editable=False)
    imported = models.BooleanField(
        default=False, editable=False, help_text="Brought along from another proxy, in that proxy's form."
    )

    enabled = models.BooleanField(default=True, help_text="Off: calls are refused until it is on again.")
    switched_off_by = models.CharField(
        max_length=13,
        choices=Authority,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="Only they, and those above them, switch it on again. Empty while it is off: an administrator.",
    )
    expires_at = models.DateTimeField(null=True, blank=True, validators=[validate_moment], help_text="Empty: never.")
    expires_at_by = bounded_by("Whoever stands below them may have it expire earlier, not later.")
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, editable=False, related_name="+")

    models_allowed = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_model_names],
        help_text='Names or patterns, e.g. ["llama3.2", "qwen3:*"]. Empty: all models of the gateway.',
    )
    models_allowed_by = bounded_by("Whoever stands below them may take models away, not add any.")
    may_infer = models.BooleanField("may generate", default=True, help_text="Generate, chat and embed.")
    may_list = models.BooleanField(default=True, help_text="List models and show what they are.")
    may_manage = models.BooleanField(
        default=False, help_text="Pull, copy, create and delete models, and unload them: for everybody."
    )
    may_use_cloud = models.BooleanField(
        default=False, help_text="Models that Ollama forwards to ollama.com, at the operator's expense."
    )
    may_be_in_path = models.BooleanField(
        default=False,
        help_text="Accept it as /k/KEY/… in the URL, for clients that send no header. It may end in logs.",
    )
    max_output_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="The most tokens one call may generate. Empty: the gateway's maximum.",
    )
    max_output_tokens_by = bounded_by("Whoever stands below them may lower the most tokens, not raise it.")
    latency_class = models.CharField(
        max_length=11,
        choices=LatencyClass,
        blank=True,
        default="",
        db_default="",
        help_text="Empty: as the tenant.",
    )
    weight = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=WEIGHTS,
        help_text="Its share of what its tenant gets, compared with the tenant's other keys. Empty: 100.",
    )
    cache_policy = models.CharField(
        max_length=13,
        choices=CachePolicy,
        blank=True,
        default="",
        db_default="",
        help_text="Which answers are kept and given again. Empty: as the tenant.",
    )

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        constraints = [
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("created_at")),
                name="key_expires_after_creation",
                violation_error_message="A key expires after it was created.",
            ),
            models.CheckConstraint(
                condition=Q(previous_digest=None) | Q(previous_expires_at__isnull=False),
                name="key_overlap_has_an_end",
            ),
            models.CheckConstraint(
                condition=Q(max_output_tokens=None) | Q(max_output_tokens__gt=0), name="key_output_cap_positive"
            ),
            models.CheckConstraint(condition=Q(weight=None) | Q(weight__gte=1), name="key_weight_positive"),
            models.CheckConstraint(
                condition=Q(latency_class__in=("", "interactive", "batch")), name="key_latency_class_known"
            ),
            models.CheckConstraint(
                condition=Q(cache_policy__in=("", *CachePolicy.values)), name="key_cache_policy_known"
            ),
            models.CheckConstraint(
                condition=Q(
                    switched_off_by__in=("", *Authority.values),
                    expires_at_by__in=Authority.values,
                    models_allowed_by__in=Authority.values,
                    max_output_tokens_by__in=Authority.values,
                ),
                name="key_authorities_known",
            ),
        ]
        # The key list of a tenant, newest first.
        indexes = [models.Index(fields=["tenant", "-created_at"], name="key_tenant_recent")]

    def __str__(self) -> str:
        return f"{self.name} (ogw_{self.prefix}_…)"

    def clean(self) -> None:
        # An emptied field of a form is None.
        self.models_allowed = self.models_allowed or []

    @property
    def state(self) -> str:
        """One of active, disabled, expired, revoked."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "active" if self.enabled else "disabled"

    @property
    def has_rights_of_superusers(self) -> bool:
        """Rights that only superusers give: they cost the operator money, or change models for everybody."""
        return self.may_manage or self.may_use_cloud

    def revoke(self) -> None:
        """Ends the key for good; calls in flight are cut within a second."""
        ApiKey.objects.using(self._state.db).filter(pk=self.pk).revoke()
        self.refresh_from_db(fields=["revoked_at"])


class ApiKeyLastUsed(models.Model):
    """Apart from the key: it changes all the time, and a change of a key makes every worker read the keys anew."""

    key = models.OneToOneField(ApiKey, on_delete=models.CASCADE, primary_key=True, related_name="last_used")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.key_id} at {self.at:%Y-%m-%d %H:%M}"
