"""Who uses the gateway."""

from django.contrib.auth.models import AbstractUser
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from tenants.archive import Archivable
from tenants.auditing import Audited


class Role(models.TextChoices):
    OWNER = "owner", "Owner: manages the tenant's people, keys and limits"
    MEMBER = "member", "Member: has keys of their own"
    VIEWER = "viewer", "Viewer: sees the tenant's usage"


class Authority(models.TextChoices):
    """Who decided something: whoever stands below them cannot undo it (tenants/authority.py)."""

    PERSON = "person", "the person whose key it is"
    OWNER = "owner", "an owner of the tenant"
    ADMINISTRATOR = "administrator", "an administrator"


class LatencyClass(models.TextChoices):
    """Whether somebody waits for the answers."""

    INTERACTIVE = "interactive", "interactive: somebody waits for the answers"
    BATCH = "batch", "batch: may wait while interactive calls do"


class CachePolicy(models.TextChoices):
    """Which answers are given again to whoever asks the same (proxy/cache)."""

    OFF = "off", "off: every answer is generated"
    DETERMINISTIC = "deterministic", "deterministic: temperature 0, a seed, embeddings"
    ALL = "all", "all: also answers that would be others each time"


class CacheScope(models.TextChoices):
    """Who gets the answers that are kept for a tenant."""

    KEY = "key", "the same key"
    TENANT = "tenant", "all keys of the tenant"
    SHARED = "shared", "all tenants that chose this"


# The weight of who was given none. Twice the weight is twice the share of a busy fleet.
ORDINARY_WEIGHT = 100
WEIGHTS = [MinValueValidator(1), MaxValueValidator(10_000)]


class Tenant(Archivable):
    """A team or customer: what keys belong to, what limits and bills are about."""

    name = models.CharField(max_length=100, unique=True)
    enabled = models.BooleanField(default=True, help_text="Off: all keys of this tenant stop working at once.")
    latency_class = models.CharField(
        max_length=11,
        choices=LatencyClass,
        default=LatencyClass.INTERACTIVE,
        db_default=LatencyClass.INTERACTIVE,
        help_text="Of its keys that say nothing else. Keys of a batch tenant are batch, whatever they say.",
    )
    weight = models.PositiveSmallIntegerField(
        default=ORDINARY_WEIGHT,
        db_default=ORDINARY_WEIGHT,
        validators=WEIGHTS,
        help_text="Its share of a busy fleet, compared with other tenants: 200 gets twice as much as 100.",
    )
    keeps_texts = models.BooleanField(
        "stores prompts and answers",
        default=False,
        db_default=False,
        help_text="On: the first 1,000 characters of what its calls ask and 200 of what is answered are kept for 7 "
        "days, without keys and e-mail addresses. All its people see a banner; each reads their own, others only who "
        "has the permission to.",
    )
    cache_policy = models.CharField(
        max_length=13,
        choices=CachePolicy,
        blank=True,
        default="",
        db_default="",
        help_text="Which answers are kept and given again. Empty: as the installation.",
    )
    cache_scope = models.CharField(
        "kept answers are for",
        max_length=6,
        choices=CacheScope,
        default=CacheScope.TENANT,
        db_default=CacheScope.TENANT,
        help_text="How fast an answer comes tells whoever may get it that somebody asked the same before.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="tenant_has_a_name"),
            models.CheckConstraint(
                condition=Q(cache_policy__in=("", *CachePolicy.values)) & Q(cache_scope__in=CacheScope.values),
                name="tenant_cache_choices_known",
            ),
            models.CheckConstraint(condition=Q(weight__gte=1), name="tenant_weight_positive"),
            models.CheckConstraint(
                condition=Q(latency_class__in=("interactive", "batch")), name="tenant_latency_class_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class User(AbstractUser, Audited):
    """A person who can sign in. Inactive users' keys stop working at once."""

    tenants = models.ManyToManyField(Tenant, through="Membership", related_name="users")

    def clean(self) -> None:
        super().clean()
        # Names are asked for without regard to case: of two, neither could sign in. The same one is refused as such.
        others = User.objects.filter(username__iexact=self.username).exclude(username=self.username)
        is_as_before = self.pk is not None and User.objects.filter(pk=self.pk, username=self.username).exists()
        if not is_as_before and others.exclude(pk=self.pk).exists():
            raise ValidationError({"username": "Somebody has this name already, in other letters. Choose another."})

    def is_staff_who_may(self, *permissions: str) -> bool:
        """`permissions`: as "usage.view_dailyusage"; all of them."""
        return self.is_staff and self.has_perms(permissions)

    def tenants_with_role(self, *roles: str) -> models.QuerySet[Tenant]:
        return Tenant.objects.filter(archived_at=None, pk__in=self.memberships.filter(role__in=roles).values("tenant"))

    def tenants_owned(self) -> models.QuerySet[Tenant]:
        return self.tenants_with_role(Role.OWNER)

    def tenants_for_keys(self) -> models.QuerySet[Tenant]:
        """Where they may have keys of their own."""
        return self.tenants_with_role(Role.OWNER, Role.MEMBER)


class Membership(Audited):
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tenant", "user"], name="membership_once_per_tenant"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant}"
