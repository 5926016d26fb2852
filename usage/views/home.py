"""The home page: today, the month, limits, speed, what went wrong last."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

from tenants.models import ApiKey, User
from tenants.requests import PersonRequest
from usage import charts, reports
from usage.lately import failures, first_token_us
from usage.reports import Scope
from usage.views.scoped import chosen, record_scopes

# Keys on the home page; all of them are one click away.
SOME_KEYS = 6


@login_required
def home(request: PersonRequest, bars_of: Callable[[User], Sequence[object]]) -> HttpResponse:
    """`bars_of`: how the limits stand that hold for somebody, which is proxy's to know."""
    scopes = reports.all_scopes(request.user)
    scope = chosen(request, scopes)
    context = {"scopes": scopes, "scope": scope, "now": timezone.now(), "zone": reports.reporting_zone().key}
    context["bars"] = bars_of(request.user)
    if scope is not None:
        context |= _sums(scope)
        if scope in record_scopes(request.user):
            context |= {"first_token_us": first_token_us(scope), "failures": failures(scope), "may_see_requests": True}
    keys = ApiKey.objects.visible_to(request.user).select_related("tenant", "last_used")
    return render(request, "usage/home.html", {
        **context,
        "keys": keys.filter(revoked_at=None).order_by("-created_at")[:SOME_KEYS],
    })  # fmt: skip


def _sums(scope: Scope) -> dict[str, Any]:
    today = reports.today()
    days = reports.by_day(scope.rows, today - timedelta(days=29), today)
    return {
        "today": days[-1].totals,
        "month": reports.totals(scope.rows, today.replace(day=1), today),
        "days": days,
        "any_usage": any(line.totals.requests for line in days),
        "chart": charts.tokens_per_day(days),
    }
