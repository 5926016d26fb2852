"""Secrets on their way to the one page that shows them."""

import uuid

from django.db import models

from tenants.models.people import User


class ShownOnce(models.Model):
    """Sealed with a key that only a cookie of the reader holds; deleted when it is read (tenants/shown_once.py)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    sealed = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"for {self.user_id}"
