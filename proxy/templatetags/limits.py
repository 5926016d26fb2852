"""How limits are written on pages."""

from django import template

from proxy.limits.states import LimitState
from tenants.models import Limit
from usage.templatetags.figures import money, whole

register = template.Library()


@register.filter
def quantity(state: LimitState, which: str) -> str:
    """`amount`, `used` or `left`, in the unit of the metric; "" for what is not known."""
    number = getattr(state, which)
    if number is None:
        return ""
    return money(number) if state.rule.metric == Limit.Metric.COST else whole(number)


@register.filter
def usual(state: LimitState) -> str:
    """The amount that holds again when an override ends."""
    number = state.rule.usual_amount or 0
    return money(number) if state.rule.metric == Limit.Metric.COST else whole(number)


@register.filter
def what(state: LimitState) -> str:
    """`tokens per day of llama3.2:latest`"""
    rule = state.rule
    each = {"seconds": f" in {rule.seconds} s", "none": " at a time"}.get(rule.window, f" per {rule.window}")
    named = {"concurrent": "calls"}.get(rule.metric, rule.metric)
    return f"{named}{each}{f' of {rule.model}' if rule.model else ''}"


@register.filter
def whose(state: LimitState) -> str:
    limit = state.limit
    if limit.scope == Limit.Scope.DEFAULT:
        return "each key"
    if limit.scope == Limit.Scope.ADDRESS:
        return "each client address"
    return f"{'the tenant' if limit.scope == Limit.Scope.TENANT else limit.scope} {limit.subject}"
