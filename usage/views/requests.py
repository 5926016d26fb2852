"""The list of requests: filters, search by an id, pages by key, following, the same as a file."""

from datetime import datetime
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_safe

from tenants.requests import PersonRequest
from usage import export, reports, request_lists
from usage.models import Outcome, Retention
from usage.reports import BadQuestion, Scope
from usage.request_lists import FAILURES, STATUS_CLASSES, Cursor, RequestFilters
from usage.views.controls import Choice, Field, Names, filter_fields
from usage.views.overview import by_exports
from usage.views.scoped import address, chosen, record_scopes

# In the order of the form; those of filter_fields come in between.
TEXTS = ("model", "key", "user", "tenant", "backend", "end_user")
OWN = ("id", "client_id", "outcome", "status", "since", "until", "slower_ms")


@login_required
@require_safe
def requests(request: PersonRequest, names: Names) -> HttpResponse:
    scopes = record_scopes(request.user)
    scope = chosen(request, scopes)
    if scope is None:
        return render(request, "usage/requests.html", {"scopes": [], "scope": None})
    problem, cursor = None, None
    try:
        filters = RequestFilters.read(request.GET)
        cursor = Cursor.read(request.GET["page"]) if request.GET.get("page") else None
    except BadQuestion as exc:
        filters, problem = RequestFilters(), exc
    query = filters.query()
    given = {name: request.GET.get(name, "") for name in (*TEXTS, *OWN)} if problem else _as_typed(filters)
    found = request_lists.page(scope, filters, cursor)
    context = {
        "scopes": [Choice(each.label, address("requests", each, {}), each == scope) for each in scopes],
        "scope": scope,
        "problem": problem,
        "page": found,
        "by_id": bool(filters.id),
        "newer": address("requests", scope, query, page=str(found.newer)) if found.newer else "",
        "older": address("requests", scope, query, page=str(found.older)) if found.older else "",
        "newest": address("requests", scope, query) if cursor else "",
        "rows_url": address("requests_rows", scope, query) if cursor is None and not problem else "",
        "csv": address("requests_csv", scope, query),
        "json": address("requests_json", scope, query),
        "cleared": address("requests", scope, {}) if query or problem else "",
        "fields": filter_fields(scope, given, TEXTS, names),
        "outcome": Field("outcome", "Outcome", given["outcome"], _OUTCOMES),
        "given": given,
        "statuses": STATUS_CLASSES,
        "with_tenants": scope.slug == "all",
        "zone": reports.reporting_zone().key,
        "retention": Retention.objects.first() if not found.records else None,
    }
    return render(request, "usage/requests.html", context, status=400 if problem else 200)


@login_required
@require_safe
def requests_rows(request: PersonRequest) -> HttpResponse:
    """The rows of the first page, for who follows it."""
    try:
        scope, filters = _asked(request)
    except BadQuestion as exc:
        return _told(exc)
    context = {"page": request_lists.page(scope, filters), "with_tenants": scope.slug == "all", "scope": scope}
    return render(request, "usage/_request_rows.html", context)


@login_required
@require_safe
@by_exports
def requests_file(request: PersonRequest, form: str) -> HttpResponseBase:
    """`form`: of export.FORMATS."""
    try:
        return export.requests_download(request, *_asked(request), form)
    except BadQuestion as exc:
        return _told(exc)


def _told(problem: BadQuestion) -> HttpResponse:
    return HttpResponse(f"{problem}\n", content_type="text/plain; charset=utf-8", status=400)


def _asked(request: PersonRequest) -> tuple[Scope, RequestFilters]:
    scope = chosen(request, record_scopes(request.user))
    if scope is None:
        raise Http404
    return scope, RequestFilters.read(request.GET)


def _as_typed(filters: RequestFilters) -> dict[str, Any]:
    """Moments as people write them, in the reporting zone."""
    return (
        dict.fromkeys((*TEXTS, *OWN), "")
        | filters.query()
        | {name: _written(at) for name in ("since", "until") if (at := getattr(filters, name))}
    )


def _written(at: datetime) -> str:
    """With the offset, which tells two hours of one name apart. Seconds only where there are some."""
    local = at.astimezone(reports.reporting_zone())
    return local.isoformat(timespec="minutes" if not (local.second or local.microsecond) else "auto")


_OUTCOMES = [(FAILURES, "all that failed"), *((value, str(label)) for value, label in Outcome.choices)]
