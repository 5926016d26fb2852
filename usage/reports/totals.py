"""Sums of usage, and what is read off them. Numbers only; templates format them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from django.db.models import Sum


@dataclass(frozen=True, slots=True)
class Totals:
    """`cost_nano`: of the priced requests. `unpriced`: requests that had no price, which is not a price of 0.
    `decoded_tokens`: those whose backend said how long it took, which is `decode_us`."""

    requests: int = 0
    failures: int = 0
    estimated: int = 0
    unpriced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    decode_us: int = 0
    total_us: int = 0
    decoded_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def priced(self) -> int:
        return self.requests - self.unpriced

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) + getattr(other, name) for name in COLUMNS))

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) - getattr(other, name) for name in COLUMNS))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Of a row that SUMS were asked for. PostgreSQL gives sums of integers as decimals, and None of no rows."""
        return cls(*(int(row[f"sum_{name}"] or 0) for name in COLUMNS))


COLUMNS = tuple(field.name for field in fields(Totals))
SUMS = {f"sum_{name}": Sum(name) for name in COLUMNS}


def added(parts: Iterable[Totals]) -> Totals:
    return sum(parts, start=Totals())


@dataclass(frozen=True, slots=True)
class Measure:
    """One number about usage. `of` gives None where there is none: no price, no call to take a mean of.

    `unit`: "" for counts, "tokens", "nano" for money in nano-units, "s", "tokens/s", "%". `additive`: whether the
    parts of a whole add up to it, and may be stacked.
    """

    name: str
    label: str
    unit: str
    of: Callable[[Totals], int | float | None]
    additive: bool = True


def _cost(totals: Totals) -> int | None:
    return totals.cost_nano if totals.priced or not totals.requests else None


def _share(part: int, whole: int, factor: float) -> float | None:
    return factor * part / whole if whole else None


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("requests", "Requests", "", lambda totals: totals.requests),
        Measure("tokens", "Tokens", "tokens", lambda totals: totals.tokens),
        Measure("prompt_tokens", "Prompt tokens", "tokens", lambda totals: totals.prompt_tokens),
        Measure("completion_tokens", "Answer tokens", "tokens", lambda totals: totals.completion_tokens),
        Measure("cost", "Cost", "nano", _cost),
        Measure("failures", "Errors", "", lambda totals: totals.failures),
        Measure("errors_share", "Share of errors", "%", lambda t: _share(t.failures, t.requests, 100), additive=False),
        Measure("estimated", "Estimated", "", lambda totals: totals.estimated),
        Measure("unpriced", "Without a price", "", lambda totals: totals.unpriced),
        Measure("decode_seconds", "Seconds of generating", "s", lambda totals: totals.decode_us / 10**6),
        Measure("tokens_per_second", "Tokens per second", "tokens/s",
                lambda totals: _share(totals.decoded_tokens, totals.decode_us, 10**6), additive=False),
        Measure("mean_seconds", "Mean duration", "s",
                lambda totals: _share(totals.total_us, totals.requests, 1 / 10**6), additive=False),
    )
}  # fmt: skip
