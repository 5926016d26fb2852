"""Limits. Administrators set any; owners set some for their tenant, its people and keys, which only tighten."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from django.db.models import Q, QuerySet
from pydantic import BaseModel, Field, StringConstraints

from gateway_site.management_api.errors import Forbidden, Invalid
from gateway_site.management_api.fields import Body, Moment, Name, Number, Prefix
from gateway_site.management_api.people import Username
from gateway_site.management_api.resources import Resource, required
from gateway_site.management_api.tokens import Caller
from tenants import money
from tenants.models import ApiKey, Limit, User

Amount = Annotated[
    Annotated[int, Field(ge=0, le=money.MAXIMUM)]
    | Annotated[str, StringConstraints(pattern=r"^[0-9]{1,19}(\.[0-9]{1,9})?$")],
    Field(description='A whole number; a cost in units of the currency, as text: "25.50". 0 refuses everything.'),
]


class NewLimit(Body):
    scope: Literal["default", "tenant", "user", "key", "address"]
    tenant: Annotated[Name | None, Field(description="Of the scope tenant.")] = None
    user: Annotated[Username | None, Field(description="Of the scope user.")] = None
    key: Annotated[Prefix | None, Field(description="Of the scope key: its prefix.")] = None
    model: Annotated[str, Field(max_length=500, description="Only calls of this model. Empty: all.")] = ""
    metric: Literal["requests", "tokens", "cost", "concurrent"]
    window: Literal["seconds", "minute", "hour", "day", "month", "none"] = "none"
    window_seconds: Number | None = None
    amount: Amount
    mode: Literal["enforce", "shadow"] = "enforce"
    override_amount: Annotated[
        Amount | None, Field(description="Holds in place of the amount until the moment beside.")
    ] = None
    override_until: Moment | None = None
    alert: Annotated[bool, Field(description="Tell the people concerned when 80 and 100 % are used.")] = False
    managed_by: Annotated[
        Name | None, Field(description="The tenant whose owners manage it; null: administrators. Owners need not say.")
    ] = None


class ShownLimit(BaseModel):
    id: int
    scope: str
    tenant: str | None
    user: str | None
    key: str | None
    model: str
    metric: str
    window: str
    window_seconds: int | None
    amount: int | str
    mode: str
    override_amount: int | str | None
    override_until: datetime | None
    alert: bool
    managed_by: str | None
    created_at: datetime


class Limits(Resource):
    path, one, scope, model = "limits", "limit", "rules:write", Limit
    New, Shown = NewLimit, ShownLimit
    fixed = ("scope", "tenant", "user", "key", "metric", "window", "window_seconds", "model", "managed_by")
    natural = (
        "scope", "tenant", "user", "key", "metric", "window", "window_seconds", "model", "managed_by"
    )  # fmt: skip
    compared = ("amount", "mode", "override_amount", "override_until", "alert")
    related = ("tenant", "user", "key", "managed_by")

    def rows(self, caller: Caller) -> QuerySet[Any]:
        rows = Limit.objects.select_related(*self.related)
        everywhere = caller.oversees(Limit, "view")
        if everywhere and caller.token.tenant_id is None:
            return rows
        tenants = caller.tenants_governed(Limit, "view")
        keys = ApiKey.objects.visible_to(caller.user).filter(tenant__in=caller.tenants_seen())
        return rows.filter(
            Q(tenant__in=tenants) | Q(managed_by__in=tenants) | Q(key__tenant__in=tenants) | Q(key__in=keys)
        )

    def shown(self, row: Any) -> dict[str, Any]:
        plain = {name: getattr(row, name) for name in ShownLimit.model_fields if name not in self.related}
        return {
            **plain,
            "tenant": row.tenant and row.tenant.name,
            "user": row.user and row.user.username,
            "key": row.key and row.key.prefix,
            "managed_by": row.managed_by and row.managed_by.name,
            "amount": shown_amount(row.metric, row.amount),
            "override_amount": shown_amount(row.metric, row.override_amount),
        }

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        columns = dict(given)
        tenants = caller.tenants_governed(Limit, "add")
        if columns.get("tenant") is not None:
            columns["tenant"] = required(tenants, "tenant", columns["tenant"], name=columns["tenant"])
        if columns.get("user") is not None:
            people = User.objects.filter(memberships__tenant__in=tenants).distinct()
            columns["user"] = required(people, "user", columns["user"], username=columns["user"])
        if columns.get("key") is not None:
            keys = ApiKey.objects.filter(tenant__in=tenants, revoked_at=None).select_related("tenant")
            columns["key"] = required(keys, "key", columns["key"], prefix=columns["key"])
        if columns.get("managed_by") is not None:
            columns["managed_by"] = required(tenants, "tenant", columns["managed_by"], name=columns["managed_by"])
        if "model" in columns:
            columns["model"] = columns["model"].strip()
        return columns

    def build(self, caller: Caller, new: Any) -> Any:
        given = new.model_dump()
        for name in ("amount", "override_amount"):
            given[name] = nano_or_whole(name, new.metric, given[name])
        row = Limit(**self.columns(caller, given))
        if not caller.oversees(Limit, "add"):
            self._make_it_theirs(caller, row)
        return row

    def _make_it_theirs(self, caller: Caller, row: Any) -> None:
        """An owner's limit is of the tenant that its subject belongs to."""
        if row.managed_by is not None:
            return
        if row.scope == Limit.Scope.TENANT:
            row.managed_by = row.tenant
        elif row.scope == Limit.Scope.KEY and row.key is not None:
            row.managed_by = row.key.tenant
        elif row.scope == Limit.Scope.USER and row.user is not None:
            owned = list(caller.tenants_governed(Limit, "add").filter(memberships__user=row.user)[:2])
            if len(owned) != 1:
                raise Invalid("Say for which of your tenants it holds.", field="managed_by")
            row.managed_by = owned[0]

    def may_create(self, caller: Caller, row: Any) -> None:
        if caller.token.tenant_id is not None and row.scope in (Limit.Scope.DEFAULT, Limit.Scope.ADDRESS):
            caller.require_everywhere("rules for all")
        if row.scope == Limit.Scope.USER and row.managed_by is None:
            # It holds for their keys in all tenants.
            caller.require_everywhere("limits of people wherever they are: name the tenant as managed_by")
        if row.managed_by_id is not None:
            self._fits(row)
        elif not caller.oversees(Limit, "add"):
            raise Forbidden("Owners set limits for their tenant, its people and its keys.")

    def _fits(self, row: Any) -> None:
        """Whether an owner's limit is about their own: a user may be of other tenants besides."""
        tenant = row.managed_by_id
        match row.scope:
            case Limit.Scope.TENANT:
                fits = row.tenant_id == tenant
            case Limit.Scope.KEY:
                fits = row.key is None or row.key.tenant_id == tenant
            case Limit.Scope.USER:
                fits = row.user is None or row.user.memberships.filter(tenant=tenant).exists()
            case _:
                fits = False
        if not fits:
            raise Invalid("The tenant is not the one that this limit is about.", field="managed_by")

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        self._govern(caller, row, "change")

    def may_end(self, caller: Caller, row: Any) -> None:
        self._govern(caller, row, "delete")

    def change(self, caller: Caller, row: Any, given: Mapping[str, Any]) -> Any:
        amounts = {
            name: nano_or_whole(name, row.metric, given[name])
            for name in ("amount", "override_amount")
            if name in given
        }
        return super().change(caller, row, {**given, **amounts})

    def _govern(self, caller: Caller, row: Any, action: str) -> None:
        if caller.oversees(Limit, action):
            return
        if not caller.tenants_governed(Limit, action).filter(pk=row.managed_by_id).exists():
            raise Forbidden("This limit was set by an administrator. You may set a tighter one beside it.")


def nano_or_whole(field: str, metric: str, amount: int | str | None) -> int | None:
    if amount is None:
        return None
    try:
        if metric == Limit.Metric.COST:
            return money.to_nano(str(amount))
        nano = money.to_nano(amount) if isinstance(amount, str) else amount * money.ONE
    except ValueError as exc:
        raise Invalid(str(exc), field=field) from None
    whole, decimals = divmod(nano, money.ONE)
    if decimals:
        raise Invalid("Write a whole number.", field=field)
    return whole


def shown_amount(metric: str, amount: int | None) -> int | str | None:
    return money.shown(amount) if metric == Limit.Metric.COST and amount is not None else amount
