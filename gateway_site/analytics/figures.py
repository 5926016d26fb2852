"""What is told, as JSON: fields in docs/usage.md."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from django.conf import settings

from proxy.model_names import canonical_pattern
from tenants import money
from usage import reports, request_lists
from usage.models import StoredText, UsageRecord
from usage.reports import BadQuestion, Scope, Totals
from usage.reports.questions import number, text
from usage.request_lists import Cursor, RequestFilters
from usage.rollups import day_of

# Theirs kept seven days.
USUAL_DAYS = 7
LONGEST_DAYS = 366
USUAL_LIMIT, MOST = 100, 1000
# Their names of ours.
TIMES = {"start_time": "since", "end_time": "until"}


def filters_of(query: Mapping[str, str]) -> RequestFilters:
    """Raises BadQuestion."""
    given = {name: query[name] for name in ("outcome", "status", "key", "client_id", "end_user") if name in query}
    given |= {ours: query[theirs] for theirs, ours in TIMES.items() if theirs in query}
    if model := text(query, "model", 500).strip():
        given["model"] = canonical_pattern(model)
    try:
        return RequestFilters.read(given)
    except BadQuestion as exc:
        theirs = {ours: theirs for theirs, ours in TIMES.items()}.get(exc.parameter, exc.parameter)
        raise BadQuestion(theirs, str(exc).replace(f"{exc.parameter}:", f"{theirs}:", 1)) from None


def limit_of(query: Mapping[str, str]) -> int:
    """Raises BadQuestion."""
    written = text(query, "limit", 12).strip()
    if not written:
        return USUAL_LIMIT
    found = number(written)
    if not found or found > MOST:
        raise BadQuestion("limit", f"limit: a number from 1 to {MOST}.")
    return found


def days_of(query: Mapping[str, str]) -> tuple[date, date]:
    """First and last day of the reporting zone. Raises BadQuestion."""
    asked, zone = filters_of(query), reports.reporting_zone()
    # The end itself is not in it: until midnight means until the day before.
    last = day_of(asked.until - timedelta(microseconds=1), zone) if asked.until else reports.today()
    first = day_of(asked.since, zone) if asked.since else last - timedelta(days=USUAL_DAYS - 1)
    if first > last or (last - first).days >= LONGEST_DAYS:
        raise BadQuestion("start_time", f"start_time: before end_time, by at most {LONGEST_DAYS} days.")
    return first, last


def stats(scope: Scope, first: date, last: date) -> dict[str, Any]:
    return {
        "of": scope.label,
        "first_day": first,
        "last_day": last,
        "time_zone": reports.reporting_zone().key,
        "currency": settings.GATEWAY.currency,
        "total": sums(reports.totals(scope.rows, first, last)),
        "by_model": [{"model": line.label, **sums(line.totals)} for line in reports.by_model(scope.rows, first, last)],
        "by_day": [{"day": line.label, **sums(line.totals)} for line in reports.by_day(scope.rows, first, last)],
    }


def sums(totals: Totals) -> dict[str, Any]:
    return {
        "requests": totals.requests,
        "successes": totals.requests - totals.failures,
        "failures": totals.failures,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.tokens,
        "estimated_requests": totals.estimated,
        "average_duration_ms": round(totals.total_us / totals.requests / 1000, 3) if totals.requests else None,
        "tokens_per_second": _speed(totals.decoded_tokens, totals.decode_us),
        # Text, because a float would lose digits; null where nothing had a price, which is not 0.
        "cost": money.shown(totals.cost_nano) if totals.priced else None,
        "requests_without_price": totals.unpriced,
    }


def found(scope: Scope, filters: RequestFilters, limit: int, cursor: Cursor | None) -> request_lists.Page:
    return request_lists.page(scope, filters, cursor, limit)


def result(record: UsageRecord, stored: StoredText | None) -> dict[str, Any]:
    return {
        "id": record.pk,
        "timestamp": record.started_at,
        "model": record.model,
        "model_asked": record.model_asked,
        "endpoint": record.endpoint,
        "stream": record.stream,
        "status_code": record.status,
        "outcome": record.outcome,
        "error": record.error or None,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "estimated": record.estimated,
        "tokens_per_second": _speed(record.completion_tokens, record.decode_us),
        "duration_ms": record.total_us / 1000,
        "time_to_first_token_ms": record.first_token_us / 1000 or None,
        "load_ms": record.load_us / 1000,
        "queue_ms": record.queue_us / 1000,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "client_ip": record.client_address,
        "user_agent": record.user_agent,
        "client_request_id": record.client_request_id or None,
        "tenant": record.tenant_name,
        "user": record.user_name or None,
        "end_user": record.end_user or None,
        "key": record.key_name,
        "backend": record.backend or None,
        "cost": None if record.cost_nano is None else money.shown(record.cost_nano),
        "currency": record.currency,
        "prompt": stored.prompt if stored else None,
        "response_preview": stored.answer if stored else None,
    }


def _speed(tokens: int, us: int) -> float | None:
    return round(tokens * 10**6 / us, 3) if us else None
