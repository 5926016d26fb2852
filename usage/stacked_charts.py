"""The geometry of a report's chart: stacked bars of what adds up, lines of what does not. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from usage.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH
from usage.reports import Measure, Report, Totals
from usage.reports.answers import OTHER
from usage.templatetags.figures import figure, level

SERIES = 8  # colours that can be told apart; what comes after them is grey
TICKS = 6
BASELINE = HEIGHT - BOTTOM


@dataclass(frozen=True, slots=True)
class Series:
    """`path`: of SVG. `colour`: a class of the style sheet."""

    label: str
    colour: str
    path: str


@dataclass(frozen=True, slots=True)
class Column:
    """What stands over one period; `told`: its numbers, for whoever points at it."""

    x: float
    width: float
    told: str


@dataclass(frozen=True, slots=True)
class Text:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class StackedChart:
    is_lines: bool
    series: tuple[Series, ...]
    columns: tuple[Column, ...]
    levels: tuple[Text, ...]
    ticks: tuple[Text, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    baseline: int = BASELINE


def stacked(report: Report) -> StackedChart:
    measure = report.question.measure
    labels = [group.label for group in report.groups] or [measure.label]
    of_series = [group.periods for group in report.groups] or [tuple(period.totals for period in report.periods)]
    values = [[measure.of(totals) for totals in sums] for sums in of_series]
    if measure.additive:
        highest = max((sum(value or 0 for value in column) for column in zip(*values, strict=True)), default=0)
    else:
        highest = max((value or 0 for series in values for value in series), default=0)
    top = round_up(highest, 10 if measure.unit in ("", "tokens", "nano") else 0.1)
    places = _Places(len(report.periods), top)
    paths = _bars(values, places) if measure.additive else [_line(series, places) for series in values]
    return StackedChart(
        not measure.additive,
        tuple(map(Series, labels, _colours(labels, report), paths)),
        tuple(_columns(report, labels, of_series, places)),
        tuple(Text(places.y(top * share), level(top * share, measure)) for share in (0, 0.5, 1)),
        tuple(_ticks(report, places)),
    )


class _Places:
    """Where things are: `left` and `width` of a period's column, `y` of a value."""

    def __init__(self, periods: int, top: float) -> None:
        self.width = (WIDTH - LEFT) / max(periods, 1)
        self.scale = (BASELINE - TOP) / top

    def left(self, number: int) -> float:
        return round(LEFT + number * self.width, 2)

    def middle(self, number: int) -> float:
        return round(LEFT + (number + 0.5) * self.width, 2)

    def y(self, value: float) -> float:
        return round(BASELINE - value * self.scale, 2)


def _bars(values: Sequence[Sequence[float | None]], places: _Places) -> list[str]:
    """Each series on top of those before it."""
    base = [0.0] * len(values[0])
    paths = []
    wide = round(places.width * 0.8, 2)
    for series in values:
        parts = []
        for number, value in enumerate(series):
            if not value:
                continue
            low, high = places.y(base[number]), places.y(base[number] + value)
            left = round(places.left(number) + places.width * 0.1, 2)
            parts.append(f"M{left} {high}h{wide}V{low}h-{wide}z")
            base[number] += value
        paths.append("".join(parts))
    return paths


def _line(values: Sequence[float | None], places: _Places) -> str:
    """Broken where there is no number; a number alone between two gaps is a short dash."""
    parts, is_on = [], False
    for number, value in enumerate(values):
        if value is not None:
            at = f"{places.middle(number)} {places.y(value)}"
            parts.append(f"L{at}" if is_on else f"M{at}h0.1")
        is_on = value is not None
    return "".join(parts)


def _columns(
    report: Report, labels: Sequence[str], of_series: Sequence[Sequence[Totals]], places: _Places
) -> list[Column]:
    found = []
    for number, period in enumerate(report.periods):
        told = [f"{period.label}: {_told(period.totals, report.question.measure)}"]
        if report.groups:
            sums = ((label, series[number]) for label, series in zip(labels, of_series, strict=True))
            told += [f"{label}: {_told(totals, report.question.measure)}" for label, totals in sums if totals.requests]
        found.append(Column(places.left(number), round(places.width, 2), "\n".join(told)))
    return found


def _told(totals: Totals, measure: Measure) -> str:
    return figure(totals, measure, unit=True)


def _ticks(report: Report, places: _Places) -> list[Text]:
    """A few, the last one among them."""
    count = len(report.periods)
    every = max(1, -(-count // TICKS))
    short = {"hour": slice(5, 16), "day": slice(5, 10), "month": slice(0, 7)}[report.question.per]
    return [
        Text(places.middle(number), period.label[short])
        for number, period in enumerate(report.periods)
        if (count - 1 - number) % every == 0
    ]


def _colours(labels: Sequence[str], report: Report) -> list[str]:
    found = [f"series-{number + 1}" if number < SERIES else "series-other" for number in range(len(labels))]
    if report.groups and report.groups[-1].value is None and labels[-1] == OTHER:
        found[-1] = "series-other"
    return found


def round_up(value: float, least: float) -> float:
    """The next of `least` times 1, 2, 3, 4, 5, 6, 8, 10, 20, …"""
    unit = least
    while True:
        for factor in (1, 2, 3, 4, 5, 6, 8):
            if value <= factor * unit:
                return factor * unit
        unit *= 10
