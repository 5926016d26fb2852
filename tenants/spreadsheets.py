"""CSV that spreadsheets may open (threat T10), streamed: memory does not grow with the number of rows."""

import csv
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

# What spreadsheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Lines that are sent at a time.
_TOGETHER = 500


class _Echo:
    def write(self, line: str) -> str:
        return line


def as_csv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Lines. Text is quoted, numbers are not."""
    writer = csv.writer(_Echo(), quoting=csv.QUOTE_NONNUMERIC)
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([cell(value) for value in row])


def cell(value: Any) -> Any:
    """A value that no spreadsheet runs as a formula."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def csv_answer(
    request: HttpRequest, name: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> StreamingHttpResponse:
    """`rows` may ask the database while they are sent."""
    lines = as_csv(columns, rows)
    parts = iter(lambda: "".join(islice(lines, _TOGETHER)), "")
    return StreamingHttpResponse(
        # Given ordinary iterators, Django's ASGI handler would collect all they have.
        _one_by_one(parts) if isinstance(request, ASGIRequest) else parts,
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"', "X-Content-Type-Options": "nosniff"},
    )


async def _one_by_one(parts: Iterator[str]) -> AsyncIterator[str]:
    while (part := await sync_to_async(next)(parts, "")) != "":
        yield part
