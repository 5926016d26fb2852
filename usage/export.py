"""Records as CSV or JSON, streamed: memory does not grow with their number (threats T10, U12)."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import Q, QuerySet

from tenants import money, spreadsheets
from usage.models import UsageRecord

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


def rows(records: QuerySet[UsageRecord]) -> Iterator[dict[str, Any]]:
    """The records by time, a page at a time."""
    # Not iterator(): on PostgreSQL, outside a transaction, it has the server keep the whole result first, which
    # statement_timeout forbids for a large one; inside one, it would hold back the vacuum for as long.
    records = records.order_by("started_at", "id").values("id", *(_FIELDS.get(name, name) for name in COLUMNS[1:]))
    page = list(records[:PAGE])
    while page:
        yield from map(_row, page)
        last = page[-1]
        after = Q(started_at__gte=last["started_at"]) & ~Q(started_at=last["started_at"], id__lte=last["id"])
        page = list(records.filter(after)[:PAGE])


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = {name: record[_FIELDS.get(name, name)] for name in COLUMNS}
    row["id"] = str(row["id"])
    row["started_at"], row["finished_at"] = row["started_at"].isoformat(), row["finished_at"].isoformat()
    # Text, because a float would lose digits. No price is nothing, which is not 0.
    row["cost"] = None if row["cost"] is None else money.shown(row["cost"])
    return row


def as_json(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One array, a record a line."""
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def as_csv(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return spreadsheets.as_csv(COLUMNS, (row.values() for row in rows))
