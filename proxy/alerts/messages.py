"""What is said of a limit that is nearly used up: to programs as JSON, to people as a mail. Pure."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.urls import reverse

from proxy.models import Delivery
from tenants import money
from tenants.models import ApiKey, Limit
from tenants.subjects import one_line

TEST = {"event": "test", "text": "This is a test: the webhook works."}


def alert(
    row: Limit, key: ApiKey | None, threshold: int, amount: int, used: int, window: tuple[datetime, datetime]
) -> dict[str, Any]:
    """What webhooks get, but for the number of the delivery. Money in units of the currency, as a text."""
    start, end = (moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in window)
    whose = f"the key {key.name} (ogw_{key.prefix}_…)" if key is not None else f"the {row.scope} {row.subject}"
    limit = {
        "id": row.pk,
        "scope": row.scope,
        "tenant": str(key.tenant if key is not None else row.tenant or row.managed_by or "") or None,
        "user": str(row.user) if row.user else None,
        "key": key.prefix if key is not None else None,
        "metric": row.metric,
        "window": row.window,
        "model": row.model or None,
        "mode": row.mode,
        "amount": _number(row.metric, amount),
        "text": f"{shown(row.metric, amount)} per {row.window}{f' of {row.model}' if row.model else ''} for {whose}",
    }
    return {
        "event": "limit.used",
        "threshold": threshold,
        "used": _number(row.metric, used),
        "currency": settings.GATEWAY.currency if row.metric == Limit.Metric.COST else None,
        "limit": limit,
        "window": {"start": start, "end": end},
        "text": f"{threshold} % of {limit['text']} is used: {shown(row.metric, used)} until {end}. "
        + _what_follows(row, threshold),
    }


def shown(metric: str, amount: int) -> str:
    """For people: `25 EUR`, `1,000 tokens`."""
    if metric == Limit.Metric.COST:
        return f"{money.shown(amount)} {settings.GATEWAY.currency}"
    return f"{amount:,} {metric}"


def mail(delivery: Delivery) -> tuple[str, str]:
    """(subject, text)."""
    if delivery.alert is None:
        return "A test of Ollama Gateway", "This is a test: alerts of limits reach you at this address.\n"
    body = delivery.alert.body
    subject = f"{body['threshold']} % used: {body['limit']['text']}"
    link = settings.SITE_URL + reverse("limits")
    return one_line(subject), f"{body['text']}\n\nAll limits and what is left of them: {link}\n"


def _number(metric: str, amount: int) -> int | str:
    return money.shown(amount) if metric == Limit.Metric.COST else amount


def _what_follows(row: Limit, threshold: int) -> str:
    if row.mode == Limit.Mode.SHADOW:
        return "It only counts: nothing is refused."
    if threshold < 100:
        return "Calls are refused when it is used up."
    return "Calls that need more than is left are refused until then."
