"""How numbers are written on pages."""

from django import template
from django.conf import settings

from usage.models import UsageRecord
from usage.reports import Measure, Totals

register = template.Library()

NANO = 10**9


@register.filter
def whole(number: int) -> str:
    """12345 → 12,345"""
    return f"{number:,}"


@register.filter
def compact(number: int) -> str:
    """Three digits that matter: 12345 → 12.3 k. The exact figure stands in a table or title beside."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            scaled = number / limit
            digits = f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}"
            return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {unit}"
    return str(number)


@register.filter
def size(count: int) -> str:
    """Bytes as Ollama writes them: 2019393189 → 2.0 GB, of a thousand MB each."""
    for limit, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= limit:
            scaled = count / limit
            return f"{int(scaled)} {unit}" if scaled >= 10 or scaled == int(scaled) else f"{scaled:.1f} {unit}"
    return f"{count} B"


@register.filter
def amount(nano: int) -> str:
    """Without the currency, for a column: four decimals, six where they would all be 0."""
    return f"{nano / NANO:,.{6 if 0 < abs(nano) < 50_000 else 4}f}"


@register.filter
def money(nano: int) -> str:
    """In the currency of the installation: two decimals, more for what would look like nothing."""
    decimals = 2 if nano == 0 or abs(nano) >= NANO // 10 else 4 if abs(nano) >= NANO // 1000 else 6
    return f"{nano / NANO:,.{decimals}f} {settings.GATEWAY.currency}"


@register.simple_tag
def currency() -> str:
    return settings.GATEWAY.currency


@register.filter
def approximately(totals: Totals) -> str:
    """The sign before numbers of which some are estimates."""
    return "≈ " if totals.estimated else ""


# Numbers that follow from tokens, of which some are estimates.
_OF_TOKENS = frozenset({"tokens", "prompt_tokens", "completion_tokens", "cost", "tokens_per_second"})


def figure(totals: Totals, measure: Measure, *, unit: bool = False) -> str:
    """A number of a table, with ≈ where estimates are in it. "no price" is not 0, and no number is not either."""
    value = measure.of(totals)
    if value is None:
        return "no price" if measure.name == "cost" else "–"
    if measure.unit == "nano":
        text = money(int(value)) if unit else amount(int(value))
        lacking = "no\N{NO-BREAK SPACE}price\N{NO-BREAK SPACE}+ " if totals.unpriced else ""
    else:
        text, lacking = _number(value, measure), ""
        if unit and measure.unit:
            text += "\N{NO-BREAK SPACE}" + measure.unit
        elif measure.unit == "%":
            text += "\N{NO-BREAK SPACE}%"
    sign = approximately(totals).replace(" ", "\N{NO-BREAK SPACE}") if measure.name in _OF_TOKENS else ""
    return f"{lacking}{sign}{text}"


def _number(value: float, measure: Measure) -> str:
    if isinstance(value, int):
        return whole(value)
    return f"{value:,.{2 if measure.unit == 's' else 1}f}"


def level(value: float, measure: Measure) -> str:
    """At the axis of a chart."""
    if measure.unit == "nano":
        return f"{value / NANO:,.10g}"
    return compact(int(value)) if measure.unit in ("", "tokens") and value == int(value) else f"{value:,.10g}"


def difference(now: float | None, before: float | None) -> str:
    """In percent: +12 %. Nothing where there is nothing to compare with."""
    if not now and not before:
        return ""
    if not before or now is None:
        return "new" if now else ""
    percent = 100 * (now - before) / before
    return f"{percent:+,.{0 if abs(percent) >= 10 else 1}f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


@register.filter
def seconds(us: int) -> str:
    """Of microseconds: 850 µs, 12.3 ms, 4.56 s, 3 min 20 s."""
    if us < 1000:
        return f"{us}\N{NO-BREAK SPACE}µs"
    if us < 10**6:
        return f"{us / 1000:.{1 if us < 100_000 else 0}f}\N{NO-BREAK SPACE}ms"
    if us < 100 * 10**6:
        return f"{us / 10**6:.2f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(us // 10**6, 60)
    return f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"


@register.filter
def speed(totals: Totals) -> str:
    """Tokens per second of generating, of the calls whose backend told its time."""
    if not totals.decode_us:
        return "–"
    return f"{approximately(totals)}{totals.decoded_tokens * 10**6 / totals.decode_us:,.1f}"


@register.filter
def estimated(record: UsageRecord) -> str:
    return "≈ " if record.estimated else ""


@register.filter
def cost(record: UsageRecord) -> str:
    """Of one call, without the currency."""
    return "no price" if record.cost_nano is None else f"{estimated(record)}{amount(record.cost_nano)}"


@register.filter
def tokens(record: UsageRecord) -> int:
    return record.prompt_tokens + record.completion_tokens


@register.filter
def rate(record: UsageRecord) -> str:
    """Tokens per second of generating; a dash where the backend did not tell its time."""
    if not record.decode_us:
        return "–"
    return f"{estimated(record)}{record.completion_tokens * 10**6 / record.decode_us:,.1f}"
