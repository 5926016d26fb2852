"""Who changed what, from where (tenants/auditing.py)."""

from typing import Any, Self

from auditlog.models import AbstractLogEntry, LogEntryManager
from django.db import models

from tenants.acting import Via, who_acts
from tenants.models.people import Tenant, User


class AuditEntryQuerySet(models.QuerySet["AuditEntry"]):
    def visible_to(self, user: User) -> Self:
        """What owners of a tenant see: what concerns their tenants."""
        return self.filter(tenant__in=user.tenants_owned())


class AuditEntryManager(LogEntryManager.from_queryset(AuditEntryQuerySet)):  # type: ignore[misc]
    def create(self, **columns: Any) -> "AuditEntry":
        """Also what django-auditlog notes by itself, of many-to-many relations, bears who acts."""
        return super().create(**{**columns, **who_acts().columns()})


class AuditEntry(AbstractLogEntry):
    """One change of one row. Names are kept as they were: the actor's, the row's, and those of rows it points at.

    `cid` is the id of the request. `changes` is {column: [before, after]}, with the values of secrets left out.
    """

    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        db_constraint=False,  # that a tenant was deleted for good is noted while it goes
        help_text="Whom it concerns. Empty: all.",
    )
    actor_name = models.CharField("actor", max_length=200)
    via = models.CharField(max_length=5, choices=Via)

    objects = AuditEntryManager()

    class Meta(AbstractLogEntry.Meta):
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        # Nobody adds, changes or deletes them, so that these permissions cannot be given.
        default_permissions = ("view",)
        ordering = ["-id"]
        indexes = [
            # What an owner sees of their tenant, the newest first.
            models.Index(fields=["tenant", "-id"], name="audit_of_tenant"),
            # What somebody did.
            models.Index(fields=["actor_name", "-id"], name="audit_by_actor"),
        ]

    def __str__(self) -> str:
        # The name of a row may hold anything; tenants/changes.py shows it harmless.
        return f"number {self.pk}"
