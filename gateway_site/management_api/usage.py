"""What was used, from the roll-ups. Nobody writes it."""

from datetime import date, timedelta
from typing import Annotated, Any, Literal

from django.conf import settings
from django.db.models import Q
from django.http import HttpRequest
from ninja import Query, Router
from pydantic import BaseModel, Field

from gateway_site.management_api.errors import Invalid
from gateway_site.management_api.resources import reading, required
from gateway_site.management_api.tokens import Caller
from tenants import money
from usage import reports
from usage.models import DailyUsage

LONGEST = timedelta(days=366)

Day = Annotated[
    str | None, Query(None, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="A day of the reporting zone.")
]
By = Annotated[Literal["day", "model", "key"], Query("day", description="What the lines are of.")]
OfTenant = Annotated[str | None, Query(None, max_length=100, description="Only this tenant's.")]


class Line(BaseModel):
    label: str
    key: Annotated[str | None, Field(description="The prefix, of lines by key.")]
    requests: int
    failures: int
    estimated: int
    prompt_tokens: int
    completion_tokens: int
    cost: Annotated[
        str | None,
        Field(description="Of the requests that had a price, in units of the currency; null where none had: not 0."),
    ]
    unpriced: int


class Usage(BaseModel):
    since: date
    until: date
    currency: str
    lines: list[Line]
    total: Line


router = Router(tags=["usage"])


@router.get("", response={200: Usage}, operation_id="get_usage", summary="What was used")
def get_usage(request: HttpRequest, since: Day, until: Day, by: By, tenant: OfTenant) -> dict[str, Any]:
    """Owners and viewers see their tenant's, members that of their own keys. Without days: the last 30."""
    caller = reading(request)
    last = _day("until", until) or reports.today()
    first = _day("since", since) or max(last - timedelta(days=29), date.min)
    if first > last or last - first > LONGEST:
        raise Invalid("Ask for at most 366 days, the first before the last.", field="since")
    rows = _visible(caller)
    if tenant is not None:
        rows &= Q(tenant=required(caller.tenants_seen(), "tenant", tenant, name=tenant).pk)
    lines = {"day": reports.by_day, "model": reports.by_model, "key": reports.by_key}[by](rows, first, last)
    return {
        "since": first,
        "until": last,
        "currency": settings.GATEWAY.currency,
        "lines": [_line(str(line.label), line.totals, line.prefix or None) for line in lines],
        "total": _line("total", reports.totals(rows, first, last)),
    }


def _visible(caller: Caller) -> Q:
    rows = Q(pk__in=())
    if caller.oversees(DailyUsage, "view"):
        rows = Q()
    else:
        for scope in reports.scopes(caller.user):
            rows |= scope.rows
    return rows if caller.token.tenant_id is None else rows & Q(tenant__in=caller.tenants_seen())


def _day(field: str, text: str | None) -> date | None:
    try:
        found = None if text is None else date.fromisoformat(text)
    except ValueError:
        raise Invalid("Write a day such as 2026-12-31.", field=field) from None
    if found is not None and not 2000 <= found.year < 9000:
        raise Invalid("Write a day of the years 2000 to 8999.", field=field)
    return found


def _line(label: str, totals: reports.Totals, key: str | None = None) -> dict[str, Any]:
    return {
        "label": label,
        "key": key,
        "requests": totals.requests,
        "failures": totals.failures,
        "estimated": totals.estimated,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "cost": money.shown(totals.cost_nano) if totals.unpriced < totals.requests or not totals.requests else None,
        "unpriced": totals.unpriced,
    }
