"""Deleting archives: usage records keep pointing at whom they were made by."""

from typing import Self

from django.db import models
from django.utils import timezone

from tenants.auditing import Audited, change


class ArchivableQuerySet(models.QuerySet):
    def current(self) -> Self:
        """Not archived."""
        return self.filter(archived_at=None)

    def archive(self) -> int:
        """Archives the rows that are not; returns how many."""
        return change(self.current(), archived_at=timezone.now())


class Archivable(Audited):
    archived_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When it was deleted; its usage records stay."
    )

    objects = ArchivableQuerySet.as_manager()

    class Meta:
        abstract = True

    def archive(self) -> None:
        if self.archived_at is None:
            self.archived_at = timezone.now()
            self.save(update_fields=["archived_at"])
