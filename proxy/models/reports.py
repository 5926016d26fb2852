"""What the fleet's probes found, for pages: those may run in another process than the probes."""

from datetime import datetime, timedelta
from typing import Self

from django.db.models import (
    CASCADE,
    CharField,
    DateTimeField,
    JSONField,
    Model,
    OneToOneField,
    QuerySet,
    TextChoices,
)
from django.utils import timezone

from proxy.models.backends import Backend

# Older than this, a report says how things were: no worker runs, or none can write.
STALE = timedelta(seconds=60)


class BackendReportQuerySet(QuerySet["BackendReport"]):
    def current(self, now: datetime | None = None) -> Self:
        """Of backends that are in use and up, and young enough to be believed."""
        since = (now or timezone.now()) - STALE
        return self.filter(
            state=BackendReport.State.UP, updated_at__gte=since, backend__enabled=True, backend__archived_at=None
        )

    def model_names(self) -> list[str]:
        """Canonical names of all installed models, sorted, each once."""
        return sorted({item["name"] for found in self.values_list("models", flat=True) for item in found})


class BackendReport(Model):
    """Written by one of the workers (proxy/fleet/reports.py), every few seconds at most. Not a rule: nothing that
    decides about a call reads it."""

    class State(TextChoices):
        UP = "up"
        DOWN = "down"

    backend = OneToOneField(Backend, on_delete=CASCADE, primary_key=True, related_name="report")
    state = CharField(max_length=4, choices=State)
    version = CharField(max_length=40, blank=True)
    problem = CharField(max_length=300, blank=True, help_text="In our own words.")
    # Of each installed model: name (canonical), digest, size (bytes), modified_at, family, parameters, quantization,
    # context (tokens it was trained for, 0 = unknown), remote (what is sent to it leaves the house), capabilities.
    models = JSONField(default=list)
    # Of each loaded model: name, context (tokens), size, vram (bytes), expires_at.
    warm = JSONField(default=list)
    reporter = CharField(max_length=32, help_text="Which process wrote it.")
    updated_at = DateTimeField(help_text="When it was last known to be so.")

    objects = BackendReportQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.backend_id}: {self.state}"

    @property
    def is_current(self) -> bool:
        return self.updated_at >= timezone.now() - STALE
