"""What is known of one backend."""

from dataclasses import dataclass, field
from typing import Any

from proxy.fleet.breaker import Breaker
from proxy.snapshot import Backend
from proxy.upstream.wire import Pool

# Two in a row: one may be a hiccup of ours.
PROBES_TO_GO_DOWN = 2
# What Ollama gives a model when nobody configured more (ollama-api §5).
SMALLEST_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One item of /api/tags."""

    digest: str
    trained_context: int  # 0 = unknown
    item: dict[str, Any] = field(repr=False)
    remote: bool = False  # a stub: what is sent to it leaves the house, whatever it is called


@dataclass(frozen=True, slots=True)
class WarmModel:
    """One item of /api/ps."""

    context_length: int
    item: dict[str, Any] = field(repr=False)


@dataclass(slots=True)
class BackendState:
    """Changed by the probes, the calls in flight and the rules. One per backend and process."""

    backend: Backend
    pool: Pool
    version: str = ""
    probed: bool = False  # asked at least once, with whatever outcome
    answered: bool = False  # at least once
    failed_probes: int = 0
    problem: str = ""
    models: dict[str, InstalledModel] = field(default_factory=dict)
    warm: dict[str, WarmModel] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    total_in_flight: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    # After a "503 busy": no cold work until then (monotonic seconds).
    busy_until: float = 0.0

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def host(self) -> bytes:
        """The value of the Host header."""
        return self.backend.url.partition("://")[2].encode("ascii")

    @property
    def is_up(self) -> bool:
        return self.answered and self.failed_probes < PROBES_TO_GO_DOWN

    def has(self, model: str) -> bool:
        return model in self.models

    def may_serve(self, model: str, *, cloud: bool) -> bool:
        """`cloud`: whether the prompt may leave the house (M2)."""
        installed = self.models.get(model)
        return installed is not None and (cloud or not installed.remote)

    def context_of(self, model: str, pinned: int | None) -> int:
        """The context (tokens) a call of a model gets here."""
        if pinned:
            return pinned
        warm = self.warm.get(model)
        if warm is not None and warm.context_length:
            return warm.context_length
        return self.backend.context_length or SMALLEST_DEFAULT_CONTEXT

    def offers_context(self, model: str, asked: int, pinned: int | None) -> bool:
        """Whether a call that asks for a num_ctx is not cut here. More than the model was trained for is as much."""
        installed = self.models.get(model)
        if installed is not None and installed.trained_context:
            asked = min(asked, installed.trained_context)
        return asked <= self.context_of(model, pinned)

    def has_slot(self, model: str) -> bool:
        return self.in_flight.get(model, 0) < self.backend.slots

    def take(self, model: str) -> None:
        self.in_flight[model] = self.in_flight.get(model, 0) + 1
        self.total_in_flight += 1

    def give_back(self, model: str) -> None:
        left = self.in_flight[model] - 1
        if left:
            self.in_flight[model] = left
        else:
            del self.in_flight[model]
        self.total_in_flight -= 1
