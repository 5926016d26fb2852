"""How numbers are written on pages."""

from django import template
from django.conf import settings

from usage.reports import Totals

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
