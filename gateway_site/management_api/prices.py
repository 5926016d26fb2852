"""What models cost, in units of the currency. A changed price is a new row: calls of the past keep theirs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from django.utils import timezone
from ninja.responses import Status
from pydantic import BaseModel, Field

from gateway_site.management_api.catalogue import OfTheGateway
from gateway_site.management_api.errors import Conflict, Invalid
from gateway_site.management_api.fields import Body, ModelName, Moment, Money
from gateway_site.management_api.resources import lock
from gateway_site.management_api.tokens import Caller
from proxy.model_names import canonical_pattern
from proxy.models import Backend
from tenants import money
from usage.models import Price

PARTS = {"input": "input_nano", "output": "output_nano", "gpu_second": "gpu_second_nano", "kwh": "kwh_nano"}


class NewPrice(Body):
    model: Annotated[ModelName, Field(description='A model or a pattern, e.g. "qwen3:*".')]
    backend: Annotated[str, Field(max_length=100, description="Only on this backend. Empty: on all.")] = ""
    input: Annotated[Money, Field(description="Per 1,000,000 prompt tokens.")] = "0"
    output: Annotated[Money, Field(description="Per 1,000,000 generated tokens.")] = "0"
    gpu_second: Money = "0"
    kwh: Money = "0"
    watts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    valid_from: Annotated[Moment | None, Field(description="Null: from now on.")] = None


class ShownPrice(BaseModel):
    id: int
    model: str
    backend: str
    input: str
    output: str
    gpu_second: str
    kwh: str
    watts: int
    valid_from: datetime
    created_at: datetime


class Prices(OfTheGateway):
    path, one, model = "prices", "price", Price
    New, Shown, fixed = NewPrice, ShownPrice, ("model", "backend", "valid_from")
    natural, compared = ("model", "backend", "valid_from"), (*PARTS.values(), "watts")

    def shown(self, row: Any) -> dict[str, Any]:
        plain = {name: getattr(row, name) for name in ShownPrice.model_fields if name not in PARTS}
        return {**plain, **{name: money.shown(getattr(row, column)) for name, column in PARTS.items()}}

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        columns = {PARTS.get(name, name): value for name, value in given.items()}
        columns |= {PARTS[name]: money.to_nano(given[name]) for name in PARTS if name in given}
        if "model" in columns:
            columns["model"] = canonical_pattern(columns["model"])
        if columns.get("backend") and not Backend.objects.current().filter(name=columns["backend"]).exists():
            raise Invalid(f"There is no backend “{columns['backend']}”.", "unknown_backend", field="backend")
        return columns

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        super().may_change(caller, row, columns)
        self._is_to_come(row)

    def may_end(self, caller: Caller, row: Any) -> None:
        super().may_end(caller, row)
        self._is_to_come(row)

    def _is_to_come(self, row: Any) -> None:
        if row.is_in_force:
            raise Conflict("This price is in force: calls of the past point at it. POST a new one, which replaces it.")

    def create(self, caller: Caller, new: Any) -> Status:
        if new.valid_from is not None:
            return super().create(caller, new)
        new.valid_from = timezone.now()
        wanted = self.build(caller, new)
        self.may_create(caller, wanted)
        lock(self.path)
        before = Price.objects.filter(model=wanted.model, backend=wanted.backend, valid_from__lte=wanted.valid_from)
        current = before.order_by("-valid_from").first()
        if current is not None and all(getattr(current, name) == getattr(wanted, name) for name in self.compared):
            return Status(200, self.answer(current))
        wanted.full_clean()
        wanted.save()
        return Status(201, self.answer(wanted))
