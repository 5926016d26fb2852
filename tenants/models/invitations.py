"""How people come to a tenant: nobody signs up without being asked."""

from datetime import datetime
from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.auditing import Audited
from tenants.models.people import Role, Tenant, User


class InvitationQuerySet(models.QuerySet["Invitation"]):
    def open(self, now: datetime | None = None) -> Self:
        """Neither accepted, withdrawn nor too old, to a tenant that is there."""
        return self.filter(
            accepted_at=None, withdrawn_at=None, expires_at__gt=now or timezone.now(), tenant__archived_at=None
        )


class Invitation(Audited):
    """The link is sent and shown once; the row keeps its digest (tenants/invitations.py)."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    invited_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, editable=False, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    withdrawn_at = models.DateTimeField(null=True, editable=False)
    # Following a link that went by mail alone proves whose mailbox it is.
    link_shown = models.BooleanField(default=False, db_default=False, editable=False)
    accepted_at = models.DateTimeField(null=True, editable=False)
    accepted_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, editable=False, related_name="+")

    objects = InvitationQuerySet.as_manager()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(role__in=Role.values), name="invitation_role_known")]
        # The people of a tenant, the newest invitation first.
        indexes = [models.Index(fields=["tenant", "-created_at"], name="invitation_tenant_recent")]

    def __str__(self) -> str:
        return f"{self.email} to {self.tenant}"
