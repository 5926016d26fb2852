"""Names and rules of models: aliases, policies, and the one row of default models. For administrators."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from django.db.models import QuerySet
from django.http import HttpRequest
from ninja import Router
from pydantic import BaseModel, Field, StringConstraints

from gateway_site.management_api.errors import Invalid
from gateway_site.management_api.fields import Body, ModelName, changes_of
from gateway_site.management_api.resources import Resource, changing, reading
from gateway_site.management_api.tokens import Caller
from proxy.model_names import canonical_pattern
from proxy.models import DefaultModels, ModelAlias, ModelPolicy


class OfTheGateway(Resource):
    """Rows that are no tenant's."""

    scope = "config:write"

    def rows(self, caller: Caller) -> QuerySet[Any]:
        self._ask(caller, "view")
        return self.model._default_manager.all()

    def _ask(self, caller: Caller, action: str) -> None:
        caller.require_everywhere(f"{self.path} of the gateway")
        super()._ask(caller, action)


class NewAlias(Body):
    pattern: Annotated[ModelName, Field(description='What clients ask for, e.g. "gpt-4o" or "gpt-*".')]
    model: Annotated[ModelName, Field(description="The model that answers; @chat or @embedding: the default models.")]
    enabled: bool = True


class ShownAlias(BaseModel):
    id: int
    pattern: str
    model: str
    enabled: bool
    created_at: datetime


class Aliases(OfTheGateway):
    path, one, model = "aliases", "alias", ModelAlias
    New, Shown = NewAlias, ShownAlias
    natural, compared = ("pattern",), ("model", "enabled")

    def may_create(self, caller: Caller, row: Any) -> None:
        super().may_create(caller, row)
        self._lead_elsewhere(row.pattern, row.model)

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        super().may_change(caller, row, columns)
        self._lead_elsewhere(columns.get("pattern", row.pattern), columns.get("model", row.model))

    def _lead_elsewhere(self, pattern: str, model: str) -> None:
        if canonical_pattern(pattern) == canonical_pattern(model):
            raise Invalid("Both names mean the same model. An alias serves a model under another name.", field="model")


class NewPolicy(Body):
    pattern: Annotated[ModelName, Field(description='A model or a pattern; "*" for all.')]
    num_ctx: Annotated[int, Field(ge=4, le=2**31 - 1)] | None = None
    load_options: Annotated[
        dict[str, bool | int | float], Field(max_length=50, description='E.g. {"num_gpu": 99}.')
    ] = {}
    keep_alive: Annotated[str, StringConstraints(max_length=20), Field(description='E.g. "30m", or "-1" for ever.')] = (
        ""
    )
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class ShownPolicy(BaseModel):
    id: int
    pattern: str
    num_ctx: int | None
    load_options: dict[str, bool | int | float]
    keep_alive: str
    max_output_tokens: int | None
    created_at: datetime


class Policies(OfTheGateway):
    path, one, model = "policies", "policy", ModelPolicy
    New, Shown = NewPolicy, ShownPolicy
    natural, compared = ("pattern",), ("num_ctx", "load_options", "keep_alive", "max_output_tokens")


class ChosenModels(Body):
    chat_model: Annotated[str, Field(max_length=500, description="What @chat leads to. Empty: the first that can.")]
    embedding_model: Annotated[str, Field(max_length=500, description="What @embedding leads to.")]


class ShownDefaults(BaseModel):
    chat_model: str
    embedding_model: str


class Defaults(OfTheGateway):
    path, one, model = "default-models", "choice of default models", DefaultModels
    New, Shown = ChosenModels, ShownDefaults


defaults = Defaults()
router = Router(tags=["default-models"])
Changes = changes_of(ChosenModels)


@router.get("", response={200: ShownDefaults}, operation_id="get_default_models", summary="Default models")
def get_defaults(request: HttpRequest) -> BaseModel:
    rows = defaults.rows(reading(request))
    return defaults.answer(rows.filter(pk=1).first() or DefaultModels())


@router.patch("", response={200: ShownDefaults}, operation_id="change_default_models", summary="Choose them")
def change_defaults(request: HttpRequest, body: Changes) -> BaseModel:  # type: ignore[valid-type]
    with changing(request) as caller:
        caller.require(defaults.scope)
        defaults.rows(caller)
        row = DefaultModels.the_row()
        return defaults.answer(defaults.change(caller, row, body.model_dump(exclude_unset=True)))
