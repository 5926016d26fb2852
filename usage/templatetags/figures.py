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
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return str(number)


@register.filter
def money(nano: int) -> str:
    """In the currency of the installation: two decimals, more for what would look like nothing."""
    amount = nano / NANO
    decimals = 2 if nano == 0 or abs(amount) >= 0.1 else 4 if abs(amount) >= 0.001 else 6
    return f"{amount:,.{decimals}f} {settings.GATEWAY.currency}"


@register.filter
def cost(totals: Totals) -> str:
    """What it cost, as far as there were prices. A missing price is not 0."""
    if not totals.requests:
        return "–"
    if not totals.priced:
        return "no price"
    return money(totals.cost_nano) + (" + no price" if totals.unpriced else "")


@register.filter
def approximately(totals: Totals) -> str:
    """The sign before numbers of which some are estimates."""
    return "≈ " if totals.estimated else ""
