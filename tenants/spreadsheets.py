"""CSV that spreadsheets may open (threat T10), streamed: memory does not grow with the number of rows."""

import csv
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

# What spreadsheets take for the beginning of a formula, some of them also in full width.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What they leave out before it.
_BLANK = " \u00a0\u3000\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
# Control characters, which terminals obey, and those that turn the direction of writing, which readers are fooled by.
_MARK = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), _MARK)
_CONTROLS |= {ord(char): char for char in "\t\r\n"}
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
    """A value that no spreadsheet runs as a formula, and no terminal obeys."""
    if not isinstance(value, str):
        return value
    if not value.isprintable():
        value = value.translate(_CONTROLS)
    return f"'{value}" if value.lstrip(_BLANK).startswith(_FORMULA) else value


def csv_answer(
    request: HttpRequest, name: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> StreamingHttpResponse:
    """`rows` may ask the database while they are sent."""
    return download(request, f"{name}.csv", as_csv(columns, rows), "text/csv; charset=utf-8")


def download(request: HttpRequest, name: str, lines: Iterator[str], media_type: str) -> StreamingHttpResponse:
    """`lines` may ask the database while they are sent. `name`: of the file, ours, not a person's."""
    parts = iter(lambda: "".join(islice(lines, _TOGETHER)), "")
    return StreamingHttpResponse(
        # Given ordinary iterators, Django's ASGI handler would collect all they have.
        _one_by_one(parts) if isinstance(request, ASGIRequest) else parts,
        content_type=media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


async def _one_by_one(parts: Iterator[str]) -> AsyncIterator[str]:
    while (part := await sync_to_async(next)(parts, "")) != "":
        yield part
