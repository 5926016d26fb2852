"""Usage: sums of any measure by anything, with the period before; the same as files."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from tenants import money, rate_limits
from tenants.rate_limits import limited
from tenants.requests import PersonRequest
from usage import export, reports
from usage.reports import FILTERS, GROUPS, MEASURES, PERIODS, PRESETS, BadQuestion, Question, Report, Row, Scope
from usage.reports.questions import HOUR, MOST_DAYS_BY_DAY, MOST_DAYS_BY_HOUR
from usage.stacked_charts import stacked
from usage.templatetags.figures import difference, figure
from usage.views.controls import Choice, Names, filter_fields
from usage.views.scoped import address, chosen, record_scopes

by_exports = limited(rate_limits.EXPORT, rate_limits.user, method="GET")

# On the cards above the chart; the measure that was chosen comes first.
CARDS = ("requests", "tokens", "cost", "failures", "tokens_per_second")
MOST_CARDS = 5


@dataclass(frozen=True, slots=True)
class Card:
    label: str
    value: str
    before: str
    difference: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table. `numbers`: its cells. `narrower`: this page about it alone."""

    label: str
    prefix: str
    numbers: SafeString
    narrower: str = ""


@login_required
@require_safe
def usage(request: PersonRequest, names: Names) -> HttpResponse:
    scopes = reports.all_scopes(request.user)
    scope = chosen(request, scopes)
    if scope is None:
        return render(request, "usage/usage.html", {"scopes": scopes, "scope": None})
    today, problem = reports.today(), None
    try:
        question = Question.read(request.GET, today)
    except BadQuestion as exc:
        question, problem = Question(reports.preset("30d", today)), exc
    given = {**question.query(), "of": scope.slug}
    if problem:
        # What was typed stays to be mended.
        given |= {name: request.GET.get(name, "") for name in ("first", "last", *FILTERS)}
    report = reports.report(scope, question)
    context = {
        "scopes": [Choice(each.label, address("usage", each, _for_any_scope(question)), each == scope)
                   for each in scopes],
        "scope": scope,
        "problem": problem,
        "report": report,
        "question": question,
        "cards": list(_cards(report)),
        "chart": stacked(report),
        "fields": filter_fields(scope, given, FILTERS, names),
        "given": given,
        "presets": list(_presets(scope, question)),
        "bys": list(_bys(scope, question)),
        "measures": MEASURES.values(),
        "periods": PERIODS,
        "columns": [MEASURES[name] for name in reports.SHOWN],
        "lines": list(_lines(report, scope in record_scopes(request.user))),
        "sum": _cells(Row("All", report.totals, report.previous if report.groups else None), report),
        "csv": address("usage_csv", scope, question.query()),
        "json": address("usage_json", scope, question.query()),
        "cleared": address("usage", scope, _without_filters(question)) if question.filters.query() else "",
        "chart_rows": _chart_rows(report) if report.groups else [],
    }  # fmt: skip
    return render(request, "usage/usage.html", context, status=400 if problem else 200)


@login_required
@require_safe
@by_exports
def usage_file(request: PersonRequest, form: str) -> HttpResponseBase:
    """`form`: of export.FORMATS."""
    scope = chosen(request, reports.all_scopes(request.user))
    if scope is None:
        raise Http404
    try:
        question = Question.read(request.GET, reports.today())
    except BadQuestion as exc:
        return HttpResponse(f"{exc}\n", content_type="text/plain; charset=utf-8", status=400)
    return export.report_download(request, reports.report(scope, question), form)


def _cards(report: Report) -> Iterator[Card]:
    chosen_first = dict.fromkeys((report.question.measure.name, *CARDS))
    for name in list(chosen_first)[:MOST_CARDS]:
        measure = MEASURES[name]
        unit = measure.unit in ("nano", "s", "%")  # the others are in the label
        yield Card(
            measure.label,
            figure(report.totals, measure, unit=unit),
            figure(report.previous, measure, unit=unit),
            difference(measure.of(report.totals), measure.of(report.previous)),
        )


# The table.


def _lines(report: Report, with_requests: bool) -> Iterator[Line]:
    question, starts = report.question, [period.start for period in report.periods]
    rows = reports.rows(report)
    if question.by in PERIODS:
        # The newest on top, as people read it.
        for row, start in reversed(list(zip(rows, starts, strict=True))):
            link = _requests_of(report, *_moments(start, question)) if with_requests and row.totals.requests else ""
            narrower = _narrower_range(report, start) if row.totals.requests else ""
            yield Line(row.label, "", _cells(row, report, link), narrower)
        return
    for row in rows:
        narrowed = {question.by: row.value}
        link = ""
        if row.value and with_requests:
            asked = question.range
            link = _requests_of(report, asked.first, asked.last + timedelta(days=1), narrowed)
        narrower = address("usage", report.scope, _narrowed(question), **narrowed) if row.value else ""
        yield Line(row.label, row.prefix, _cells(row, report, link), narrower)


def _cells(row: Row, report: Report, requests: str = "") -> SafeString:
    """The columns of the export, and where there is a period before, what it had of the measure. `requests`: where
    the number of requests leads."""
    # Not by a template, which takes 100 µs a line: of hours there are 744.
    found = [(_title(row, name), figure(row.totals, MEASURES[name])) for name in reports.SHOWN]
    if requests:
        link = '<a href="{}" aria-label="Requests of {}: {}">{}</a>'
        found[0] = ("", format_html(link, requests, row.label, found[0][1], found[0][1]))
    if row.previous is not None:
        measure = report.question.measure
        found.append(("", figure(row.previous, measure)))
        found.append(("", difference(measure.of(row.totals), measure.of(row.previous))))
    return format_html_join("", '<td class="number"{}>{}</td>', found)


def _title(row: Row, name: str) -> str:
    """The exact amount, of which the page shows the beginning."""
    value = MEASURES[name].of(row.totals) if name == "cost" else None
    return "" if value is None else format_html(' title="{}"', money.shown(int(value)))


def _chart_rows(report: Report) -> list[tuple[str, list[str]]]:
    measure = report.question.measure
    return [
        (period.label, [figure(group.periods[number], measure) for group in report.groups])
        for number, period in enumerate(report.periods)
    ][::-1]


def _moments(start: date | datetime, question: Question) -> tuple[date | datetime, date | datetime]:
    """Where a period begins and ends, within the range."""
    if isinstance(start, datetime):
        return start, start + timedelta(hours=1)
    first, last = question.range.first, question.range.last
    if question.per == "day":
        return start, start + timedelta(days=1)
    return max(start, first), min(reports.month_ends(start), last) + timedelta(days=1)


def _requests_of(
    report: Report, since: date | datetime, until: date | datetime, narrowed: dict[str, Any] | None = None
) -> str:
    filters = {**report.question.filters.query(), **(narrowed or {})}
    return address("requests", report.scope, filters, since=since.isoformat(), until=until.isoformat())


# Addresses of the same page, asked otherwise.


def _narrower_range(report: Report, start: date | datetime) -> str:
    """A month by its days, a day by its hours."""
    question = report.question
    if isinstance(start, datetime):
        return ""
    first, until = _moments(start, question)
    labelled = bool(question.filters.end_user)
    by = "day" if question.per == "month" else "model" if labelled else HOUR
    span = {"first": str(first), "last": str(until - timedelta(days=1))}
    query = {**_without_range(question), "per": "", "by": by}
    return address("usage", report.scope, query, **span)


def _narrowed(question: Question) -> dict[str, str]:
    """By periods, once it is about one model, key, …"""
    asked = question.range
    by = question.per
    if by == HOUR and (question.filters.end_user or question.by == "end_user" or asked.days > MOST_DAYS_BY_HOUR):
        by = "day"
    return {**question.query(), "per": "", "by": by}


def _presets(scope: Scope, question: Question) -> Iterator[Choice]:
    for name, label in PRESETS.items():
        days = reports.preset(name, reports.today()).days
        by = "day" if question.by == HOUR and days > MOST_DAYS_BY_HOUR else question.by
        query = {**_without_range(question), "by": by, "per": "", "range": name}
        yield Choice(label, address("usage", scope, query), name == question.range.name)


def _bys(scope: Scope, question: Question) -> Iterator[Choice]:
    hidden = {"tenant"} if scope.slug != "all" else set()
    if scope.slug == "mine":
        hidden.add("user")
    labelled = bool(question.filters.end_user)
    if labelled or question.range.days > MOST_DAYS_BY_HOUR:
        hidden.add("hour")
    if question.range.days > MOST_DAYS_BY_DAY:
        hidden.add("day")
    for name, label in {**PERIODS, **GROUPS}.items():
        if name not in hidden or name == question.by:
            yield Choice(
                label, address("usage", scope, {**question.query(), "per": "", "by": name}), name == question.by
            )


def _without_range(question: Question) -> dict[str, str]:
    return {name: value for name, value in question.query().items() if name not in ("range", "first", "last")}


def _without_filters(question: Question) -> dict[str, str]:
    return {name: value for name, value in question.query().items() if name not in FILTERS}


def _for_any_scope(question: Question) -> dict[str, str]:
    """Without what is only of the scope that is left."""
    by = {"by": "model", "per": ""} if question.by in ("tenant", "user") else {}
    return {**_without_filters(question), **by}
