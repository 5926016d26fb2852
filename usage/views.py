"""The home page and one's own usage."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from tenants.models import ApiKey, User
from tenants.requests import PersonRequest
from usage import charts, reports
from usage.reports import Scope

PERIODS = (7, 30, 90)
# Keys on the home page; all of them are one click away.
SOME_KEYS = 6


@login_required
def home(request: PersonRequest, bars_of: Callable[[User], Sequence[object]]) -> HttpResponse:
    """`bars_of`: how the limits stand that hold for somebody, which is proxy's to know."""
    scopes = reports.scopes(request.user)
    scope = _chosen(request, scopes)
    today = reports.today()
    context = {"scopes": scopes, "scope": scope, "now": timezone.now(), "zone": reports.reporting_zone().key}
    context["bars"] = bars_of(request.user)
    if scope is not None:
        days = reports.by_day(scope.rows, today - timedelta(days=29), today)
        context |= {
            "today": days[-1].totals,
            "month": reports.totals(scope.rows, today.replace(day=1), today),
            "days": days,
            "any_usage": any(line.totals.requests for line in days),
            "chart": charts.tokens_per_day(days),
        }
    keys = ApiKey.objects.visible_to(request.user).select_related("tenant", "last_used")
    return render(request, "usage/home.html", {
        **context,
        "keys": keys.filter(revoked_at=None).order_by("-created_at")[:SOME_KEYS],
        "may_have_keys": request.user.tenants_for_keys().exists(),
    })  # fmt: skip


@login_required
def usage(request: PersonRequest) -> HttpResponse:
    scopes = reports.scopes(request.user)
    scope = _chosen(request, scopes)
    last = reports.today()
    days = _period(request)
    first = last - timedelta(days=days - 1)
    context = {
        "scopes": scopes,
        "scope": scope,
        "days": days,
        "periods": PERIODS,
        "now": timezone.now(),
        "zone": reports.reporting_zone().key,
    }
    if scope is not None:
        context |= _sums(scope, first, last)
    return render(request, "usage/usage.html", context)


def _sums(scope: Scope, first: date, last: date) -> dict[str, object]:
    by_day = reports.by_day(scope.rows, first, last)
    return {
        "totals": reports.totals(scope.rows, first, last),
        "by_day": by_day[::-1],
        "chart": charts.tokens_per_day(by_day),
        "by_model": reports.by_model(scope.rows, first, last),
        "by_key": reports.by_key(scope.rows, first, last),
    }


def _chosen(request: PersonRequest, scopes: list[Scope]) -> Scope | None:
    """404 for what is not in the list: it does not say whether it exists (T1)."""
    wanted = request.GET.get("of")
    if wanted is None:
        return scopes[0] if scopes else None
    for scope in scopes:
        if scope.slug == wanted:
            return scope
    raise Http404


def _period(request: PersonRequest) -> int:
    wanted = request.GET.get("days", "30")
    if wanted not in map(str, PERIODS):
        raise Http404
    return int(wanted)
