"""What programs manage the gateway with, and what they were answered when they created something."""

from datetime import datetime
from typing import Self

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from tenants.auditing import Audited, change
from tenants.models.people import Tenant, User
from tenants.moments import validate_moment

# What a token may be used for, as far as its user may do it. The word after the colon is always "write".
SCOPES = {
    "read": "Look at everything that its user may see",
    "keys:write": "Make, change, rotate and revoke API keys",
    "people:write": "Users, memberships and invitations",
    "tenants:write": "Tenants",
    "rules:write": "Limits and IP rules",
    "config:write": "Backends, aliases, policies, prices, default models; reload the configuration",
}


def validate_scopes(value: object) -> None:
    if not isinstance(value, list) or not value or not all(scope in SCOPES for scope in value):
        raise ValidationError(f"Choose at least one of {', '.join(SCOPES)}.")


class ManagementTokenQuerySet(models.QuerySet["ManagementToken"]):
    def usable(self, now: datetime | None = None) -> Self:
        """Neither revoked nor expired, of a user who is not switched off."""
        return self.filter(
            Q(expires_at=None) | Q(expires_at__gt=now or timezone.now()), revoked_at=None, user__is_active=True
        )

    def revoke(self) -> int:
        """Revokes those that are not; returns how many. It holds at once: tokens are looked up for each request."""
        return change(self.filter(revoked_at=None), revoked_at=timezone.now())


class ManagementToken(Audited):
    """Reaches as far as its user does at that moment, and no further than its scopes. The row keeps a digest."""

    user = models.ForeignKey(
        User, on_delete=models.CASCADE, related_name="management_tokens", help_text="Whose rights it has."
    )
    name = models.CharField(max_length=100, help_text="What it is used for, e.g. “Terraform”.")
    prefix = models.CharField(max_length=16, unique=True, editable=False, help_text="The public part of the token.")
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    scopes = models.JSONField(default=list, validators=[validate_scopes], help_text="What it may be used for.")
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="It reaches this tenant alone. Empty: all that its user reaches.",
    )
    expires_at = models.DateTimeField(null=True, blank=True, validators=[validate_moment], help_text="Empty: never.")
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, editable=False, related_name="+")

    objects = ManagementTokenQuerySet.as_manager()

    class Meta:
        verbose_name = "management token"
        constraints = [
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("created_at")),
                name="token_expires_after_creation",
                violation_error_message="A token expires after it was created.",
            ),
        ]
        # The tokens of a person, newest first.
        indexes = [models.Index(fields=["user", "-created_at"], name="token_user_recent")]

    def __str__(self) -> str:
        return f"{self.name} (ogm_{self.prefix}_…)"

    def revoke(self) -> None:
        self.revoked_at = self.revoked_at or timezone.now()
        self.save(update_fields=["revoked_at"])

    @property
    def state(self) -> str:
        """One of active, expired, revoked."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= timezone.now() else "active"


class ManagementTokenLastUsed(models.Model):
    """Apart from the token, whose every change is a matter of the audit."""

    token = models.OneToOneField(ManagementToken, on_delete=models.CASCADE, primary_key=True, related_name="last_used")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.token_id} at {self.at:%Y-%m-%d %H:%M}"


class KeptAnswer(models.Model):
    """What was answered to a creation with an Idempotency-Key, for whoever asks again. Without secrets."""

    token = models.ForeignKey(ManagementToken, on_delete=models.CASCADE, related_name="+")
    # HMACs: of the Idempotency-Key, and of method, path and body, which may hold a credential.
    key = models.BinaryField(max_length=32)
    request = models.BinaryField(max_length=32)
    status = models.PositiveSmallIntegerField(null=True)
    answer = models.JSONField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token", "key"], name="answer_kept_once")]
        # Those that are too old are deleted.
        indexes = [models.Index(fields=["created_at"], name="answer_kept_since")]

    def __str__(self) -> str:
        return f"{self.status} of {self.created_at:%Y-%m-%d %H:%M}"
