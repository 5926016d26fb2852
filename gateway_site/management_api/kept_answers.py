"""Idempotency-Key: whoever asks for the same creation twice gets one thing, and the same answer.

The first to come inserts a row, and whoever comes with the same key meanwhile waits for the end of that transaction.
Refusals are not kept: what was not created may be tried again. Answers are kept for a day, without the secrets in
them, which are shown once: a replay says null in their place.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja.responses import Status

from gateway_site.management_api.bodies import rendered
from gateway_site.management_api.errors import Invalid
from gateway_site.management_api.tokens import Caller
from tenants.keys import digest
from tenants.models import KeptAnswer

if TYPE_CHECKING:
    from gateway_site.management_api.resources import Resource

KEPT_FOR = timedelta(days=1)
DELETED_AT_ONCE = 1000
REPLAYED = {"Idempotent-Replayed": "true"}


def once(
    caller: Caller, request: HttpRequest, key: str | None, create: Callable[[], Status], resource: "Resource"
) -> Status | HttpResponse:
    """Inside a transaction: what `create` answers, or what it answered to this key before.

    Raises Forbidden or NotFound for a row that is no longer there for the caller to see.
    """
    if key is None:
        return create()
    forget_old()
    row = KeptAnswer(token=caller.token, key=_hmac(key.encode()), request=_hmac(_identity(request)))
    # On PostgreSQL this waits for whoever is inserting the same; on SQLite there is one writer at a time.
    KeptAnswer.objects.bulk_create([row], ignore_conflicts=True)
    kept = KeptAnswer.objects.get(token=caller.token, key=row.key)
    if kept.answer is not None:
        if bytes(kept.request) != row.request:
            raise Invalid(
                "This Idempotency-Key was used for another request. Use a new one for each.", "idempotency_key_reused"
            )
        resource.get(caller, **{resource.identity: kept.answer[resource.identity]})
        return HttpResponse(rendered(kept.answer), "application/json", kept.status, headers=REPLAYED)
    made = create()
    kept.status, kept.answer = made.status_code, _without(made.value, resource.secrets)
    kept.save(update_fields=["status", "answer"])
    return made


def forget_old() -> None:
    old = KeptAnswer.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).values("pk")[:DELETED_AT_ONCE]
    KeptAnswer.objects.filter(pk__in=list(old.values_list("pk", flat=True))).delete()


def _without(value: Any, secrets: Sequence[str]) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(rendered(value.model_dump()))
    return {name: None if name in secrets else part for name, part in answer.items()}


def _identity(request: HttpRequest) -> bytes:
    return f"{request.method} {request.path}\n".encode() + request.body


def _hmac(value: bytes) -> bytes:
    return digest(b"idempotency " + value, settings.KEY_PEPPER)
