"""Tenants. Deleting one archives it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from django.db.models import QuerySet
from pydantic import BaseModel, Field

from gateway_site.management_api.fields import Body, Name
from gateway_site.management_api.resources import Resource
from gateway_site.management_api.tokens import Caller
from tenants.models import Tenant

LatencyClass = Literal["interactive", "batch"]
Weight = Annotated[int, Field(ge=1, le=10_000, description="Its share of a busy fleet; 100 is ordinary.")]

CachePolicy = Annotated[
    Literal["", "off", "deterministic", "all"],
    Field(description="Which answers are kept and given again. Empty: as the installation or, for a key, the tenant."),
]
CacheScope = Annotated[
    Literal["key", "tenant", "shared"],
    Field(description="Who gets what is kept: the same key, all keys of the tenant, all tenants that chose shared."),
]
KeepsTexts = Annotated[bool, Field(description="Whether beginnings of prompts and answers are stored for 7 days.")]


class NewTenant(Body):
    name: Name
    enabled: bool = True
    latency_class: LatencyClass = "interactive"
    weight: Weight = 100
    keeps_texts: KeepsTexts = False
    cache_policy: CachePolicy = ""
    cache_scope: CacheScope = "tenant"


class ShownTenant(BaseModel):
    id: int
    name: str
    enabled: bool
    latency_class: str
    weight: int
    keeps_texts: bool
    cache_policy: str
    cache_scope: str
    created_at: datetime


class Tenants(Resource):
    path, one, scope, model = "tenants", "tenant", "tenants:write", Tenant
    New, Shown = NewTenant, ShownTenant
    natural, compared = ("name",), ("enabled", "latency_class", "weight", "keeps_texts", "cache_policy", "cache_scope")

    def rows(self, caller: Caller) -> QuerySet[Any]:
        return caller.tenants_seen()

    def may_create(self, caller: Caller, row: Any) -> None:
        caller.require_everywhere("others")
        super().may_create(caller, row)

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        caller.require_everywhere(
            "others"
        )  # not even its own: what a tenant is called and gets is no matter of its own
        super().may_change(caller, row, columns)

    def may_end(self, caller: Caller, row: Any) -> None:
        caller.require_everywhere("others")
        super().may_end(caller, row)

    def end(self, caller: Caller, row: Any) -> None:
        row.archive()
