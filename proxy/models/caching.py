"""What is kept of answers: how long and for whom, what was thrown away, and what it saved."""

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from proxy.model_names import InvalidModelName, parse
from tenants.auditing import Audited
from tenants.models import CachePolicy, Tenant

LONGEST = 30 * 24 * 3600


class CacheSettings(Audited):
    """The one row of what holds for all; tenants and keys may have policies of their own."""

    policy = models.CharField(
        max_length=13,
        choices=CachePolicy,
        blank=True,
        help_text="Which answers are kept, where neither the key nor its tenant says. Empty: as CACHE_POLICY says.",
    )
    ttl_seconds = models.PositiveIntegerField(
        "kept for (seconds)",
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(LONGEST)],
        help_text="Empty: as CACHE_TTL_SECONDS or --cache-ttl says.",
    )
    charges = models.BooleanField(
        "kept answers cost",
        default=False,
        help_text="On: an answer that was kept, or shared with another call, costs what its tokens cost. "
        "Off: it costs nothing.",
    )

    class Meta:
        verbose_name = verbose_name_plural = "cache settings"
        constraints = [
            models.CheckConstraint(condition=Q(id=1), name="cache_settings_one_row"),
            models.CheckConstraint(condition=Q(policy__in=("", *CachePolicy.values)), name="cache_settings_policy"),
            models.CheckConstraint(
                condition=Q(ttl_seconds=None) | Q(ttl_seconds__gte=1), name="cache_settings_ttl_positive"
            ),
        ]

    def __str__(self) -> str:
        return "cache settings"


class CachePurge(Audited):
    """Kept answers that nobody gets any more. The number of the latest one is part of what answers are found by, so
    that a purge holds everywhere as soon as it is known, and rows are never deleted."""

    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+", help_text="Empty: of all tenants."
    )
    model = models.CharField(max_length=500, blank=True, help_text="E.g. qwen3:8b. Empty: of all models.")
    at = models.DateTimeField(auto_now_add=True)
    by = models.CharField(max_length=150, blank=True, editable=False)

    class Meta:
        verbose_name = "purge of the cache"
        verbose_name_plural = "purges of the cache"
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"answers {self.what}"

    @property
    def what(self) -> str:
        said = [f"of {self.tenant}"] if self.tenant_id else []
        said += [f"by {self.model}"] if self.model else []
        return " ".join(said) or "of all"

    def clean(self) -> None:
        if not self.model:
            return
        if self.tenant_id:
            raise ValidationError("Choose a tenant or a model, not both.")
        try:
            self.model = parse(self.model).canonical
        except InvalidModelName:
            raise ValidationError({"model": "Write the name of one model, such as qwen3:8b."}) from None


COUNTED = ("hits", "misses", "coalesced", "bypassed", "saved_gpu_us", "saved_tokens")


class CacheUseQuerySet(models.QuerySet["CacheUse"]):
    def sums(self) -> dict[str, int]:
        found = self.order_by().aggregate(**{name: models.Sum(name) for name in COUNTED})
        return {name: total or 0 for name, total in found.items()}


class CacheUse(models.Model):
    """What the cache did for one tenant on one day (UTC). Added to by the workers every few seconds."""

    day = models.DateField()
    tenant = models.ForeignKey(
        Tenant, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    hits = models.PositiveBigIntegerField(default=0, help_text="Calls answered from what was kept.")
    misses = models.PositiveBigIntegerField(default=0, help_text="Calls that might have been, and were generated.")
    coalesced = models.PositiveBigIntegerField(default=0, help_text="Calls that shared an answer while it was made.")
    bypassed = models.PositiveBigIntegerField(default=0, help_text="Calls that the policy did not hold for.")
    saved_gpu_us = models.PositiveBigIntegerField(default=0, help_text="GPU microseconds that were not needed.")
    saved_tokens = models.PositiveBigIntegerField(default=0)

    objects = CacheUseQuerySet.as_manager()

    class Meta:
        verbose_name = "use of the cache"
        verbose_name_plural = "uses of the cache"
        ordering = ["-day", "tenant"]
        constraints = [models.UniqueConstraint(fields=["day", "tenant"], name="cache_use_once_a_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.tenant_id}"
