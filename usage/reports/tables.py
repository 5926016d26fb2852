"""The tables of a report: what a page shows and what its export holds are these, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from tenants import money
from usage.reports.answers import Report
from usage.reports.questions import BY, PERIODS
from usage.reports.totals import MEASURES, Measure, Totals

# The columns of numbers, in their order.
SHOWN = (
    "requests", "failures", "errors_share", "prompt_tokens", "completion_tokens", "estimated", "cost", "unpriced",
    "decode_seconds", "tokens_per_second", "mean_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """`value`, `prefix`: of a Group. `estimated`: whether the tokens and what follows from them are marked ≈."""

    label: str
    totals: Totals
    previous: Totals | None = None
    value: str | None = None
    prefix: str = ""

    @property
    def numbers(self) -> dict[str, Any]:
        """By SHOWN; None where there is no such number."""
        return {name: MEASURES[name].of(self.totals) for name in SHOWN}


def rows(report: Report) -> list[Row]:
    """The table of a report: its periods, or its groups."""
    if report.question.by in PERIODS:
        return [Row(period.label, period.totals) for period in report.periods]
    return [Row(group.label, group.totals, group.previous, group.value, group.prefix) for group in report.groups]


def chart_rows(report: Report) -> list[tuple[str, list[int | float | None]]]:
    """The table of the chart: for each period the measure of each group, or of all where there are no groups."""
    measure = report.question.measure.of
    if not report.groups:
        return [(period.label, [measure(period.totals)]) for period in report.periods]
    return [
        (period.label, [measure(group.periods[number]) for group in report.groups])
        for number, period in enumerate(report.periods)
    ]


def first_column(report: Report) -> str:
    return BY[report.question.by]


def columns(report: Report) -> tuple[str, ...]:
    """Of the file."""
    by = report.question.by
    before = (_before(report),) if report.groups else ()
    return ("first", "last", "zone", by, *(("prefix",) if by == "key" else ()), *SHOWN, "currency", *before)


def exported(report: Report) -> Iterator[dict[str, Any]]:
    """The rows of the table as a file has them. Their sum is not among them, so that a column can be summed."""
    asked, by = report.range, report.question.by
    for row in rows(report):
        yield {
            "first": str(asked.first),
            "last": str(asked.last),
            "zone": report.zone,
            by: row.label,
            **({"prefix": row.prefix} if by == "key" else {}),
            **written(row.totals),
            **({_before(report): _text(report.question.measure, row.previous)} if row.previous is not None else {}),
        }


def _before(report: Report) -> str:
    """The column of what the measure was in the period before."""
    return f"previous_{report.question.measure.name}"


def written(totals: Totals) -> dict[str, Any]:
    """By SHOWN. Money is text, because a float would lose digits; what there is none of is None, which is not 0."""
    found = {name: _text(MEASURES[name], totals) for name in SHOWN}
    return {**found, "currency": settings.GATEWAY.currency}


def _text(measure: Measure, totals: Totals) -> Any:
    value = measure.of(totals)
    if measure.unit == "nano":
        return None if value is None else money.shown(int(value))
    return round(value, 6) if isinstance(value, float) else value
