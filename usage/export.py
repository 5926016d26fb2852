"""Tables as CSV or JSON, streamed: memory does not grow with the number of rows (threats T10, U12).

What a page shows and what its export holds come from the same functions: usage.reports for sums,
usage.request_lists for requests.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet
from django.http import StreamingHttpResponse
from django.utils import timezone

from tenants import money
from usage import request_lists
from usage.models import UsageRecord
from usage.reports import Report, Scope, columns, exported
from usage.request_lists import RequestFilters

PAGE = 2000
# Lines that are sent together: a piece of its own for each would cost more than the line.
LINES = 500

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
# What spreadsheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Control characters, which terminals obey, and those that turn the direction of writing, which readers are fooled by.
_MARK = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), _MARK)
_CONTROLS |= {ord(char): char for char in "\t\r\n"}

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


class _Echo:
    def write(self, line: str) -> str:
        return line


def as_csv(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> Lines:
    """Text is quoted, numbers are not."""
    writer = csv.writer(_Echo(), quoting=csv.QUOTE_NONNUMERIC)
    yield writer.writerow(columns)
    for found in rows:
        yield writer.writerow([cell(value) for value in found.values()])


def cell(value: Any) -> Any:
    """A value that no spreadsheet runs as a formula, and no terminal obeys."""
    if not isinstance(value, str):
        return value
    if not value.isprintable():
        value = value.translate(_CONTROLS)
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value


# Downloads.

FORMATS: dict[str, tuple[str, Callable[[Iterable[Row], Sequence[str]], Lines]]] = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "json": ("application/json", as_json),
}


def report_download(report: Report, form: str) -> StreamingHttpResponse:
    """The table of a report. `form`: of FORMATS."""
    asked = report.range
    name = f"usage-by-{report.question.by}-{asked.first}-{asked.last}"
    return _download(exported(report), columns(report), name, form)


def requests_download(scope: Scope, filters: RequestFilters, form: str) -> StreamingHttpResponse:
    """The list of requests from its first page to its last."""
    return _download(request_rows(scope, filters), COLUMNS, f"requests-{_moment(timezone.now())}", form)


def request_rows(scope: Scope, filters: RequestFilters) -> Iterator[Row]:
    for part in request_lists.parts(scope, filters, FIELDS):
        yield from map(row, part)


def _moment(at: datetime) -> str:
    return f"{timezone.localtime(at):%Y-%m-%d-%H%M%S}"


def _download(rows: Iterable[Row], columns: Sequence[str], name: str, form: str) -> StreamingHttpResponse:
    media_type, write = FORMATS[form]
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.{form}"',
        "Cache-Control": "no-store",
    }
    return StreamingHttpResponse(_together(write(rows, columns)), content_type=media_type, headers=headers)


def _together(lines: Lines) -> Lines:
    held: list[str] = []
    for line in lines:
        held.append(line)
        if len(held) >= LINES:
            yield "".join(held)
            held = []
    yield "".join(held)
