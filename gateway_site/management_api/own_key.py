"""What an API key may use and what is left of it, asked with the key itself: as in the headers of its calls."""

import math
from datetime import datetime
from typing import Annotated, Any

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from ninja import Router
from ninja.security.base import AuthBase
from pydantic import BaseModel, Field

from gateway_site import counters
from gateway_site.management_api.errors import Forbidden
from gateway_site.management_api.errors import Unavailable as NotNow
from gateway_site.management_api.limits import shown_amount
from gateway_site.management_api.tokens import headers_of, presented, refused
from proxy import door, routes
from proxy.admission import NO_KEY, NOT_ACCEPTED
from proxy.client import Scope
from proxy.client_address import Address
from proxy.errors import Forbidden as ForbiddenHere
from proxy.errors import Unauthorized, Unavailable
from proxy.limits.states import LimitState, LimitStates
from proxy.snapshot import Key
from tenants.models import ApiKey

# Whoever has a key may ask: as at `GET /`, no right is needed.
_ANY_RIGHT = routes.find(b"/")[0]["GET"]


def any_right() -> routes.Route:
    return _ANY_RIGHT


class OwnLimit(BaseModel):
    scope: str
    whose: Annotated[str, Field(description='E.g. "key x1Y2z3A4", "the tenant acme".')]
    metric: str
    window: str
    window_seconds: int | None
    model: Annotated[str | None, Field(description="Only calls of this model; null: all.")]
    mode: Annotated[str, Field(description="enforce; shadow: it is counted, and refuses nothing.")]
    amount: Annotated[int | str, Field(description="A cost as text, in units of the currency.")]
    usual_amount: Annotated[int | str | None, Field(description="What it goes back to; null: it is not raised.")]
    used: Annotated[int | str | None, Field(description="With what running calls hold. Null: not known here.")]
    left: int | str | None
    resets_at: datetime | None
    resets_in_seconds: int | None


class OwnKey(BaseModel):
    prefix: str
    name: str
    tenant: str
    user: str | None
    expires_at: datetime | None
    models_allowed: list[str]
    may_infer: bool
    may_list: bool
    may_manage: bool
    may_use_cloud: bool
    max_output_tokens: int | None
    currency: str
    limits: list[OwnLimit]
    note: Annotated[str, Field(description="What must be known about the numbers; empty: they are the whole truth.")]


class ApiKeyAuth(AuthBase):
    openapi_type = "http"
    openapi_scheme = "bearer"

    def __call__(self, request: HttpRequest) -> Key:
        return authenticated(request)


def authenticated(request: HttpRequest) -> Key:
    """As a call is admitted: in the same forms, by the same rules. Only a place in the network is no key here."""
    from gateway_site.asgi import gateway  # the process's own, which imports what asks

    presented(request, NO_KEY)
    try:
        key = gateway.admission.admit(
            gateway.rules(), _ANY_RIGHT, headers_of(request), address_of(request), gateway.now()
        )
    except Unavailable as exc:
        raise NotNow(exc.message) from None
    except ForbiddenHere as exc:
        raise Forbidden(exc.message, exc.code) from None
    except Unauthorized as exc:
        raise refused(request, exc.message, "invalid_key") from None
    if key.acting:
        raise refused(request, NOT_ACCEPTED, "invalid_key")
    return key


router = Router(tags=["key"])


@router.get(
    "", auth=ApiKeyAuth(), response={200: OwnKey}, operation_id="get_own_key",
    summary="An API key about itself",
)  # fmt: skip
def get_own_key(request: HttpRequest) -> dict[str, Any]:
    """Send an API key (ogw_…), in any form that calls take."""
    key: Key = request.auth  # type: ignore[attr-defined]
    row = ApiKey.objects.select_related("tenant", "user").get(pk=key.id)
    states: LimitStates = counters.limits_of_key(row, str(address_of(request) or ""))
    plain = {name: getattr(row, name) for name in OwnKey.model_fields if hasattr(row, name) and name != "limits"}
    return {
        **plain,
        "tenant": row.tenant.name,
        "user": row.user and row.user.username,
        "currency": settings.GATEWAY.currency,
        "limits": [_shown(state) for state in states.limits],
        "note": states.note if states.limits else "",
    }


def address_of(request: HttpRequest) -> Address | None:
    scope: Scope = request.scope  # type: ignore[attr-defined]  # that of ASGI: elsewhere there are no rules
    return door.address_of(scope, settings.GATEWAY)


def _shown(state: LimitState) -> dict[str, Any]:
    rule, metric = state.rule, state.rule.metric
    return {
        "scope": state.limit.scope,
        "whose": rule.subject,
        "metric": metric,
        "window": rule.window,
        "window_seconds": rule.seconds or None,
        "model": rule.model or None,
        "mode": state.limit.mode,
        "amount": shown_amount(metric, state.amount),
        "usual_amount": shown_amount(metric, rule.usual_amount),
        "used": shown_amount(metric, state.used),
        "left": shown_amount(metric, state.left),
        "resets_at": state.resets_at,
        # As the headers round it: up, for whoever waits that long must not come too early.
        "resets_in_seconds": None
        if state.resets_at is None
        else max(1, math.ceil((state.resets_at - timezone.now()).total_seconds())),
    }
