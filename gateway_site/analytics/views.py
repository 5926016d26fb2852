from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from gateway_site import counters
from gateway_site.analytics import figures
from gateway_site.analytics.readers import Reader, reader_of
from gateway_site.management_api.errors import BadRequest, Forbidden, Problem, TooManyRequests, answer, problem_of
from proxy.backend_state import BackendView
from proxy.models import Backend
from tenants import rate_limits
from usage import export, texts
from usage.models import StoredText, UsageRecord
from usage.reports import BadQuestion
from usage.reports.questions import text
from usage.request_lists import Cursor, RequestFilters

View = Callable[[HttpRequest], HttpResponseBase]

# Requests on the page; the rest is at Requests.
SHOWN = 20
KEYS_ONLY = "Texts are searched with an API key, or under “Stored texts” of the pages: each look is noted in the audit."


def told_in_json(view: View) -> View:
    """What goes wrong is told as by the management API."""

    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponseBase:
        try:
            return view(request)
        except BadQuestion as exc:
            return answer(request, BadRequest(str(exc), field=exc.parameter))
        except (Problem, DatabaseError) as exc:
            return answer(request, problem_of(exc))

    return guarded


@require_safe
@told_in_json
def analytics(request: HttpRequest) -> HttpResponseBase:
    """The page; for whoever does not want one, the figures."""
    wants_page = "text/html" in request.headers.get("Accept", "")
    try:
        reader = reader_of(request)
    except Problem as exc:
        if wants_page and exc.status == 401:
            return redirect_to_login(request.get_full_path())
        raise
    told = figures.stats(reader.must_see(), *figures.days_of(request.GET))
    if not wants_page:
        return JsonResponse(told)
    newest = figures.found(reader.must_see(), RequestFilters(), SHOWN, None)
    return render(request, "usage/analytics.html", {"told": told, "records": newest.records, "reader": reader})


@require_safe
@told_in_json
def stats(request: HttpRequest) -> HttpResponse:
    scope = reader_of(request).must_see()
    return JsonResponse(figures.stats(scope, *figures.days_of(request.GET)))


@require_safe
@told_in_json
def search(request: HttpRequest) -> HttpResponse:
    reader = reader_of(request)
    scope, filters, limit = reader.must_see(), figures.filters_of(request.GET), figures.limit_of(request.GET)
    wanted = text(request.GET, "prompt_search", 200).strip()
    following, searched_to = None, None
    if wanted:
        records, found = _with_text(reader, filters, wanted, limit)
    else:
        cursor = Cursor.read(request.GET["page"]) if request.GET.get("page") else None
        page = figures.found(scope, filters, limit, cursor)
        records, following, searched_to = page.records, page.older, page.searched_to
        found = _texts_of(reader, records)
    return JsonResponse({
        "count": len(records),
        "results": [figures.result(record, found.get(record.pk)) for record in records],
        "next_page": str(following) if following else None,
        "searched_to": searched_to,
    })  # fmt: skip


def _with_text(
    reader: Reader, filters: RequestFilters, wanted: str, limit: int
) -> tuple[list[UsageRecord], dict[Any, StoredText]]:
    """The newest requests whose text contains something, and the texts."""
    if reader.texts is None:
        raise Forbidden(KEYS_ONLY, "key_needed")
    readable = reader.texts
    if filters.model:
        readable = readable.filter(model=filters.model)
    if filters.since:
        readable = readable.filter(at__gte=filters.since)
    if filters.until:
        readable = readable.filter(at__lt=filters.until)
    candidates = list(texts.found(readable, wanted)[:limit])
    conditions = filters.conditions(reader.must_see()).values()
    rows = UsageRecord.objects.filter(*conditions, reader.must_see().rows)
    records = rows.in_bulk([candidate.pk for candidate in candidates])
    fitting = [candidate for candidate in candidates if candidate.pk in records]
    with reader.noting():
        shown = texts.shown(fitting)
    return [records[each.pk] for each in shown], {each.pk: each for each in shown}


def _texts_of(reader: Reader, records: list[UsageRecord]) -> dict[Any, StoredText]:
    if reader.texts is None or not records:
        return {}
    with reader.noting():
        shown = texts.shown(reader.texts.filter(pk__in=[record.pk for record in records]))
    return {each.pk: each for each in shown}


@require_safe
@told_in_json
def export_requests(request: HttpRequest) -> HttpResponseBase:
    """All of the list, streamed, without texts."""
    reader = reader_of(request)
    scope, filters = reader.must_see(), figures.filters_of(request.GET)
    form = text(request.GET, "format", 10).strip() or "json"
    if form not in export.FORMATS:
        raise BadQuestion("format", f"format: one of {', '.join(export.FORMATS)}.")
    if wait := rate_limits.seconds_to_wait(request, rate_limits.EXPORT, "reader", reader.name):
        raise TooManyRequests(f"Too many {rate_limits.EXPORT.what}.", wait)
    return export.requests_download(request, scope, filters, form)


@require_safe
@told_in_json
def test(request: HttpRequest) -> HttpResponse:
    """Whether calls are taken and a backend answers; to whom they are known, a little more."""
    views = [BackendView.of(row) for row in Backend.objects.current().select_related("report")]
    up, gateway = sum(view.state == "up" for view in views), counters.runtime()
    said: dict[str, Any] = {"ok": gateway.is_ready and up > 0}
    try:
        reader = reader_of(request)
    except Problem:
        reader = None
    if reader is not None:
        said |= {"ready": gateway.is_ready, "draining": gateway.draining, "backends": {"up": up, "all": len(views)}}
        if reader.user is not None and reader.user.is_staff_who_may("proxy.view_backend"):
            said["backend_states"] = [
                {
                    "name": view.backend.name, "state": view.state, "hint": view.hint or None,
                    "version": view.report.version if view.report else None,
                }
                for view in views
            ]  # fmt: skip
    return JsonResponse(said, status=200 if said["ok"] else 503)
