"""What people and programs are told of limits that are nearly used up. Written by proxy/alerts."""

import uuid
from datetime import datetime
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Limit, Tenant


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def about(self, tenant: int | None) -> Self:
        """Those that are told of a tenant's limits: its own, and those of the whole installation."""
        return self.filter(Q(tenant=None) | Q(tenant=tenant), enabled=True)


class Webhook(models.Model):
    """An address that alerts are posted to, signed with a secret that is shown once."""

    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="webhooks",
        help_text="Whose alerts it gets. Empty: those of all tenants.",
    )
    url = models.CharField("address", max_length=500, help_text="E.g. https://hooks.example.com/gateway.")
    secret_encrypted = models.BinaryField(editable=False)
    enabled = models.BooleanField(default=True, help_text="Off: nothing is sent to it.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, editable=False, related_name="+"
    )

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [models.CheckConstraint(condition=~Q(url=""), name="webhook_has_an_address")]

    def __str__(self) -> str:
        return f"{self.url} of {self.tenant or 'the installation'}"


class LimitAlert(models.Model):
    """So much of a limit was used in one window. Its row is what makes it be told once, whoever finds it."""

    # The rows of limits come and go; what was told stays, and is told by `body`.
    limit = models.ForeignKey(Limit, on_delete=models.SET_NULL, null=True, related_name="+")
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, related_name="+")
    counted_for = models.CharField(max_length=64, help_text="Whose counter of the limit it is.")
    window_start = models.DateTimeField()
    window_end = models.DateTimeField()
    amount = models.PositiveBigIntegerField(help_text="Of the limit then: what was told of another amount is over.")
    threshold = models.PositiveSmallIntegerField(help_text="Percent.")
    body = models.JSONField(help_text="What is told, as webhooks get it.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["limit", "counted_for", "window_start", "amount", "threshold"], name="limit_alert_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.threshold} % of {self.body.get('limit', {}).get('text', 'a limit')}"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def due(self, now: datetime | None = None) -> Self:
        return self.filter(state=Delivery.State.PENDING, due_at__lte=now or timezone.now())


class Delivery(models.Model):
    """One message to one webhook or mailbox, and what became of it."""

    class State(models.TextChoices):
        PENDING = "pending", "on its way"
        SENT = "sent"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    alert = models.ForeignKey(LimitAlert, on_delete=models.CASCADE, null=True, related_name="deliveries")
    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, null=True, related_name="deliveries")
    email = models.EmailField(blank=True)
    state = models.CharField(max_length=7, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    # While an attempt is being made: when it is given up for lost.
    due_at = models.DateTimeField(default=timezone.now)
    outcome = models.CharField(max_length=200, blank=True, help_text="Of the last attempt.")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(webhook=None) & ~Q(email="") | Q(webhook__isnull=False, email=""),
                name="delivery_has_one_receiver",
            ),
            models.CheckConstraint(condition=Q(state__in=("pending", "sent", "failed")), name="delivery_state_known"),
        ]
        indexes = [
            # What is to be sent now, asked every second.
            models.Index(fields=["due_at"], condition=Q(state="pending"), name="delivery_due"),
            # The latest of a webhook, on its page; of all, in the admin.
            models.Index(fields=["webhook", "-created_at"], name="delivery_of_webhook"),
            models.Index(fields=["-created_at"], name="delivery_recent"),
        ]

    def __str__(self) -> str:
        return f"{self.alert or 'a test'} to {self.receiver}"

    @property
    def receiver(self) -> str:
        return self.email or str(self.webhook.url if self.webhook else "")


class Duty(models.Model):
    """What one process of the installation does for all. A holder that says nothing any more has lost it."""

    name = models.CharField(max_length=40, primary_key=True)
    holder = models.CharField(max_length=100)
    seen_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "duties"

    def __str__(self) -> str:
        return f"{self.name} by {self.holder}"
