"""One request: where its time went, where it was answered, how it ended, what it cost and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from tenants.models import ApiKey
from tenants.requests import PersonRequest
from usage import request_lists, texts
from usage.models import Outcome, Price, UsageRecord
from usage.models.records import SUCCESSES
from usage.outcome_words import outcome_words
from usage.receipts import receipt
from usage.reports import Scope
from usage.routing import Counted, Routing, attempts, read
from usage.views.scoped import address, record_scopes
from usage.waterfall import waterfall


@dataclass(frozen=True, slots=True)
class Known:
    """What this page needs to know and usage does not: handed in by gateway_site/urls.py."""

    limits_of: Callable[[ApiKey], object]  # how the limits stand that hold for a key
    touched: Callable[[ApiKey, Sequence[Counted]], Sequence[object]]  # how those stood that a call was counted against
    error_words: Callable[[str], tuple[str, str]]  # of an error's code: what happened, what to do next


@login_required
@require_safe
def one_request(request: PersonRequest, pk: UUID, known: Known) -> HttpResponse:
    scopes = record_scopes(request.user)
    record = request_lists.one(Scope("any", "", _any_of(scopes)), str(pk)) if scopes else None
    if record is None:
        raise Http404
    price = Price.objects.filter(pk=record.price_id).first() if record.price_id else None
    key = _key(request, record)
    scope = next(scope for scope in scopes if request_lists.one(scope, str(pk)))
    routing = read(record.routing)
    ended = outcome_words(record.outcome)
    return render(request, "usage/request.html", {
        "record": record,
        "waterfall": waterfall(record),
        "outcome_words": ended,
        "error_words": known.error_words(record.error) if record.error else ("", ""),
        "receipt": receipt(record, price) if price and record.cost_nano is not None and not _is_free(record) else None,
        "backend_words": backend_words(record, routing),
        "attempts": attempts(routing, record.backend, ended[0]),
        "touched": known.touched(key, routing.limits) if key and routing.limits else [],
        "has_text": texts.readable_by(request.user, scopes).filter(pk=record.pk).exists(),
        "key": key,
        "limits": known.limits_of(key) if key and not key.revoked_at else None,
        "list": address("requests", scope, {}),
        "same_key": address("requests", scope, {}, key=key.prefix) if key else "",
        "same_client_id": address("requests", scope, {}, client_id=record.client_request_id)
        if record.client_request_id else "",
    })  # fmt: skip


def _is_free(record: UsageRecord) -> bool:
    """Whether its answer was made for another call, and costs nothing by the settings of the cache."""
    return record.outcome in (Outcome.CACHED, Outcome.COALESCED) and record.cost_nano == 0


def _any_of(scopes: list[Scope]) -> Q:
    found = scopes[0].rows
    if any(not scope.rows for scope in scopes):
        return Q()
    for scope in scopes[1:]:
        found |= scope.rows
    return found


def _key(request: PersonRequest, record: UsageRecord) -> ApiKey | None:
    """The key, for who may open its page."""
    visible = ApiKey.objects.visible_to(request.user)
    if request.user.is_staff_who_may("tenants.view_apikey", "tenants.view_limit"):
        visible = ApiKey.objects.all()
    return visible.select_related("tenant", "user").filter(pk=record.api_key_id).first()


def backend_words(record: UsageRecord, routing: Routing) -> list[str]:
    """Which backend it was, and what is known of why."""
    if not record.backend:
        if record.outcome in (Outcome.CACHED, Outcome.COALESCED):
            return [f"No backend worked for it alone.{' It costs nothing.' if _is_free(record) else ''}"]
        return ["No backend answered it."]
    found = [f"{record.backend} answered it." if record.outcome in SUCCESSES else f"It was sent to {record.backend}."]
    if record.attempts > 1:
        others = record.attempts - 1
        found.append(
            f"{others} other {'attempt' if others == 1 else 'attempts'} before it failed; it was sent on before the "
            "client had got a byte."
        )
    elif record.attempts == 1 and not routing.why:
        found.append("It was the gateway's first choice.")
    if routing.why:
        found.append(routing.why)
    if record.queue_us:
        found.append("It waited until a slot there was free.")
    if record.load_us >= LOADED_US:
        found.append("The model was not warm there and had to be loaded.")
    elif routing.warm is None and (record.prefill_us or record.decode_us):
        found.append("The model was warm there.")
    return found


# What a backend calls loading of a model that is warm takes less.
LOADED_US = 500_000
