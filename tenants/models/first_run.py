"""The way in to a gateway that nobody has an account on."""

from django.db import models
from django.db.models import Q


class SetupLink(models.Model):
    """One row while there is no account: the digest of the link that the last start printed."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    digest = models.BinaryField(max_length=32)
    created_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="setup_link_one_row")]

    def __str__(self) -> str:
        return f"of {self.created_at:%Y-%m-%d %H:%M}"
