"""From which networks calls may come. Owners make rules for their tenant and its keys."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from django.conf import settings
from django.db.models import Q, QuerySet
from pydantic import BaseModel, Field, StringConstraints

from gateway_site.management_api.errors import Conflict, Forbidden
from gateway_site.management_api.fields import Body, Moment, Name, Prefix, Text
from gateway_site.management_api.resources import Resource, required
from gateway_site.management_api.tokens import Caller
from proxy import lockouts
from tenants.models import ApiKey, IPRule

Network = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9A-Fa-f:./]{2,43}$"),
    Field(description="A network or an address.", examples=["10.0.0.0/8"]),
]


class NewIPRule(Body):
    cidr: Network
    action: Literal["allow", "deny"]
    tenant: Annotated[Name | None, Field(description="With no tenant and no key it holds for all calls.")] = None
    key: Annotated[Prefix | None, Field(description="The prefix of a key.")] = None
    acts_as: Annotated[
        Prefix | None, Field(description="The prefix of the key that calls from there without one are made with.")
    ] = None
    expires_at: Moment | None = None
    note: Text = ""


class ShownIPRule(BaseModel):
    id: int
    cidr: str
    action: str
    tenant: str | None
    key: str | None
    acts_as: str | None
    by_owners: bool
    expires_at: datetime | None
    note: str
    created_at: datetime


class IPRules(Resource):
    path, one, scope, model = "ip-rules", "IP rule", "rules:write", IPRule
    New, Shown, fixed = NewIPRule, ShownIPRule, ("tenant", "key", "acts_as")
    # With who made it: an owner's does not stand for an administrator's, who alone may then delete it.
    natural, compared = ("cidr", "action", "tenant", "key", "acts_as", "by_owners"), ("expires_at", "note")
    related = ("tenant", "key", "acts_as")
    asks_back = (
        "Where it would shut out addresses that calls came from lately, or yourself from this API, or would let in "
        "everybody, it is refused with 409 confirmation_needed. With ?confirmed=true it is done."
    )

    def rows(self, caller: Caller) -> QuerySet[Any]:
        rows = IPRule.objects.select_related(*self.related)
        if caller.oversees(IPRule, "view") and caller.token.tenant_id is None:
            return rows
        tenants = caller.tenants_governed(IPRule, "view")
        keys = ApiKey.objects.visible_to(caller.user).filter(tenant__in=caller.tenants_seen())
        return rows.filter(Q(tenant__in=tenants) | Q(key__tenant__in=tenants) | Q(key__in=keys))

    def shown(self, row: Any) -> dict[str, Any]:
        plain = {name: getattr(row, name) for name in ShownIPRule.model_fields if name not in self.related}
        return {
            **plain,
            "tenant": row.tenant and row.tenant.name,
            "key": row.key and row.key.prefix,
            "acts_as": row.acts_as and row.acts_as.prefix,
        }

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        columns = dict(given)
        tenants = caller.tenants_governed(IPRule, "add")
        if columns.get("tenant") is not None:
            columns["tenant"] = required(tenants, "tenant", columns["tenant"], name=columns["tenant"])
        for name in ("key", "acts_as"):
            if columns.get(name) is not None:
                keys = ApiKey.objects.filter(tenant__in=tenants, revoked_at=None).select_related("tenant")
                columns[name] = required(keys, name, columns[name], prefix=columns[name])
        return columns

    def may_create(self, caller: Caller, row: Any) -> None:
        self._govern(caller, row, "add")
        row.by_owners = not caller.oversees(IPRule, "add")

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        self._govern(caller, row, "change")

    def may_end(self, caller: Caller, row: Any) -> None:
        self._govern(caller, row, "delete")

    def ask_back(self, caller: Caller, row: Any, *, ends: bool = False) -> None:
        if caller.request.GET.get("confirmed") == "true":
            return
        address = lockouts.address_of(caller.request, settings.GATEWAY)
        change: dict[str, Any] = {"without": [row]} if ends else {"added": row}
        if warnings := lockouts.of_change(address, **change, is_program=True):
            said = " ".join(warnings)
            if "read" not in caller.token.scopes:  # addresses of callers are told who may read
                said = "It would shut somebody out, or let in everybody; a token with the scope read is told whom."
            raise Conflict(
                f"{said} If that is what you want, send it again with ?confirmed=true.", "confirmation_needed"
            )

    def _govern(self, caller: Caller, row: Any, action: str) -> None:
        home = row.tenant_id or (row.key.tenant_id if row.key is not None else None)
        if home is None:
            caller.require_everywhere("rules for all")
            if not caller.oversees(IPRule, action):
                raise Forbidden("Owners make rules for their tenant and its keys; those for all are administrators'.")
        elif not caller.tenants_governed(IPRule, action).filter(pk=home).exists():
            raise Forbidden("Only owners of a tenant make its rules.")
        elif action != "add" and not row.by_owners and not caller.oversees(IPRule, action):
            raise Forbidden("An administrator made this rule, and only administrators change or delete it.")
