"""The geometry of bar charts that templates draw as SVG. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from usage.reports import Line

WIDTH, HEIGHT = 760, 180
LEFT, BOTTOM, TOP = 58, 24, 10


@dataclass(frozen=True, slots=True)
class Bar:
    """Two values on top of each other: the lower one stands on the axis."""

    day: date
    x: float
    width: float
    lower_y: float
    lower_height: float
    upper_y: float
    upper_height: float
    line: Line


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    value: int | date


@dataclass(frozen=True, slots=True)
class Chart:
    bars: tuple[Bar, ...]
    levels: tuple[Tick, ...]
    days: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    baseline: int = HEIGHT - BOTTOM


def tokens_per_day(lines: Sequence[Line]) -> Chart:
    """Prompt tokens below, answers above them."""
    top = _round_up(max((line.totals.tokens for line in lines), default=0))
    scale = (HEIGHT - BOTTOM - TOP) / top
    step = (WIDTH - LEFT) / max(len(lines), 1)
    baseline = HEIGHT - BOTTOM
    bars, days = [], []
    for number, line in enumerate(lines):
        lower, upper = line.totals.prompt_tokens * scale, line.totals.completion_tokens * scale
        x = LEFT + number * step
        bars.append(
            Bar(
                line.label,
                *(round(value, 2) for value in (
                    x + step * 0.12, step * 0.76, baseline - lower, lower, baseline - lower - upper, upper,
                )),
                line,
            )
        )  # fmt: skip
        # About six dates, the last day among them.
        if (len(lines) - 1 - number) % max(1, -(-len(lines) // 6)) == 0:
            days.append(Tick(round(x + step / 2, 2), line.label))
    levels = tuple(Tick(round(baseline - top * share * scale, 2), int(top * share)) for share in (0, 0.5, 1))
    return Chart(tuple(bars), levels, tuple(days))


def _round_up(value: int) -> int:
    """The next of 10, 20, 30, 40, 50, 60, 80, 100, 200, …: half of each is a whole number as well."""
    unit = 10
    while True:
        for factor in (1, 2, 3, 4, 5, 6, 8):
            if value <= factor * unit:
                return factor * unit
        unit *= 10
