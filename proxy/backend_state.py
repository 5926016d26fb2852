"""What a page says of a backend, from its row and the report of the probes."""

from dataclasses import dataclass
from typing import Any, Self

from proxy.models import Backend, BackendReport

# Of the models that are loaded, in a list: the rest is on the backend's page.
MOST_WARM = 6


@dataclass(frozen=True, slots=True)
class BackendView:
    backend: Backend
    report: BackendReport | None
    state: str
    tone: str  # ok, warn, bad, off
    hint: str

    @classmethod
    def of(cls, backend: Backend) -> Self:
        """Without a question if the row was read with its report."""
        report: BackendReport | None = getattr(backend, "report", None)
        if backend.archived_at:
            return cls(backend, report, "deleted", "off", "It was deleted and can be restored.")
        if not backend.enabled:
            return cls(backend, report, "drained", "off", "Switched off: it gets no new calls.")
        if report is None or not report.is_current:
            return cls(backend, report, "unknown", "warn", "No running worker has reported on it lately.")
        if report.state != BackendReport.State.UP:
            return cls(backend, report, "down", "bad", report.problem or "It does not answer.")
        return cls(backend, report, "up", "ok", "")

    @property
    def warm(self) -> list[dict[str, Any]]:
        return self.report.warm[:MOST_WARM] if self.report else []

    @property
    def more_warm(self) -> int:
        return max(0, len(self.report.warm) - MOST_WARM) if self.report else 0

    @property
    def vram(self) -> int:
        """Bytes."""
        return sum(model["vram"] for model in self.report.warm) if self.report else 0
