"""Tables as CSV or JSON, streamed: memory does not grow with the number of rows (threats T10, U12).

What a page shows and what its export holds come from the same functions: usage.reports for sums,
usage.request_lists for requests.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone

from tenants import money, spreadsheets
from usage import request_lists
from usage.models import UsageRecord
from usage.reports import Report, Scope, columns, exported
from usage.request_lists import RequestFilters

# Rows that are asked for, and held, at a time.
PAGE = 2000

COLUMNS = (
    "id", "client_request_id", "started_at", "finished_at", "tenant", "user", "end_user", "key", "backend",
    "model_asked", "model", "model_digest", "endpoint", "dialect", "stream", "status", "outcome", "error", "attempts",
    "queue_us", "load_us", "prefill_us", "decode_us", "first_token_us", "total_us", "gateway_us", "prompt_tokens",
    "completion_tokens", "estimated", "bytes_in", "bytes_out", "client_address", "user_agent", "price_id", "cost",
    "currency",
)  # fmt: skip
# Where the column of the export is not the field of the record.
_FIELDS = {"tenant": "tenant_name", "user": "user_name", "key": "key_name", "cost": "cost_nano"}
FIELDS = tuple(_FIELDS.get(name, name) for name in COLUMNS)
Row = dict[str, Any]
Lines = Iterator[str]


def rows(records: QuerySet[UsageRecord]) -> Iterator[Row]:
    """The records by time, a page at a time."""
    # Not iterator(): on PostgreSQL, outside a transaction, it has the server keep the whole result first, which
    # statement_timeout forbids for a large one; inside one, it would hold back the vacuum for as long.
    records = records.order_by("started_at", "id").values_list(*FIELDS)
    page = list(records[:PAGE])
    while page:
        yield from map(row, page)
        pk, started_at = page[-1][0], page[-1][2]
        after = Q(started_at__gte=started_at) & ~Q(started_at=started_at, id__lte=pk)
        page = list(records.filter(after)[:PAGE])


def row(values: Sequence[Any]) -> Row:
    """Of the values of FIELDS."""
    found = dict(zip(COLUMNS, values, strict=True))
    found["id"] = str(found["id"])
    found["started_at"], found["finished_at"] = found["started_at"].isoformat(), found["finished_at"].isoformat()
    # Text, because a float would lose digits. No price is nothing, which is not 0.
    found["cost"] = None if found["cost"] is None else money.shown(found["cost"])
    return found


def as_json(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> Lines:
    """One array, a row a line. JSON writes control characters as escapes."""
    separator = "[\n"
    for found in rows:
        yield separator + json.dumps(found, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def as_csv(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> Lines:
    return spreadsheets.as_csv(columns, (found.values() for found in rows))


# Downloads.

FORMATS: dict[str, tuple[str, Callable[[Iterable[Row], Sequence[str]], Lines]]] = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "json": ("application/json", as_json),
}


def report_download(request: HttpRequest, report: Report, form: str) -> StreamingHttpResponse:
    """The table of a report. `form`: of FORMATS."""
    asked = report.range
    name = f"usage-by-{report.question.by}-{asked.first}-{asked.last}"
    return _download(request, name, form, exported(report), columns(report))


def requests_download(request: HttpRequest, scope: Scope, filters: RequestFilters, form: str) -> StreamingHttpResponse:
    """The list of requests from its first page to its last."""
    name = f"requests-{timezone.localtime():%Y-%m-%d-%H%M%S}"
    return _download(request, name, form, request_rows(scope, filters), COLUMNS)


def request_rows(scope: Scope, filters: RequestFilters) -> Iterator[Row]:
    for part in request_lists.parts(scope, filters, FIELDS, PAGE):
        yield from map(row, part)


def _download(
    request: HttpRequest, name: str, form: str, rows: Iterable[Row], columns: Sequence[str]
) -> StreamingHttpResponse:
    media_type, write = FORMATS[form]
    return spreadsheets.download(request, f"{name}.{form}", write(rows, columns), media_type)
