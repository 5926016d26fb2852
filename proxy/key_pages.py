"""What the pages of keys show beyond the key itself: models, use, addresses, refusals."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from proxy.limits.states import Count, LimitStates, limits_of_key, nobody_counts
from proxy.models import RefusalCount
from proxy.offers import Offer, allowed, example, offers
from proxy.refusal_reasons import REASONS
from tenants.models import ApiKey
from usage import charts, reports
from usage.models import UsageRecord

# How many of the newest calls are looked at for addresses.
CALLS_LOOKED_AT = 200
REFUSALS_SHOWN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Address:
    text: str
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class KeyFacts:
    totals: reports.Totals
    chart: charts.Chart
    days: list[reports.Line]
    by_model: list[reports.Line]
    addresses: list[Address]
    refusals: list[dict[str, Any]]  # code, reason, total, latest
    limits: LimitStates


def model_names() -> list[str]:
    """What a key may be restricted to."""
    return [offer.name for offer in offers() if not offer.cloud]


def example_for(key: ApiKey) -> str:
    """A model that this key may really use, "" if none is known."""
    return example(_usable(key))


def facts_of(key: ApiKey, count: Count = nobody_counts) -> KeyFacts:
    """`count`: what the limits of this process have counted."""
    last = reports.today()
    first = last - timedelta(days=29)
    rows = Q(tenant=key.tenant_id, api_key=key.pk)
    days = reports.by_day(rows, first, last)
    return KeyFacts(
        reports.totals(rows, first, last),
        charts.tokens_per_day(days),
        days,
        reports.by_model(rows, first, last),
        _addresses(key),
        _refusals(key),
        limits_of_key(key, count),
    )


def _refusals(key: ApiKey) -> list[dict[str, Any]]:
    counted = RefusalCount.objects.filter(key_prefix=key.prefix, minute__gte=timezone.now() - REFUSALS_SHOWN)
    return [{**row, "reason": REASONS.get(row["code"], "")} for row in counted.by_code()]


def _usable(key: ApiKey) -> list[Offer]:
    return allowed(offers(), key.models_allowed, cloud=key.may_use_cloud)


def _addresses(key: ApiKey) -> list[Address]:
    """Of the newest calls, by an index: not a search through all of them."""
    newest = UsageRecord.objects.filter(api_key=key.pk).order_by("-started_at", "-id")
    found: dict[str, datetime] = {}
    for text, at in newest.values_list("client_address", "started_at")[:CALLS_LOOKED_AT]:
        if text:
            found.setdefault(text, at)
    return [Address(text, at) for text, at in found.items()][:10]
