"""The Ollama servers, for superusers: whoever names a backend makes the gateway connect there (threat B14).

What a backend may be is said by the form of the admin, through which all changes go. Secrets go in and never out.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from django.db.models import QuerySet
from django.forms import model_to_dict, modelform_factory
from ninja.responses import Status
from pydantic import BaseModel, Field, StringConstraints

from gateway_site.management_api.errors import Conflict, Forbidden, Invalid
from gateway_site.management_api.fields import Body, Name, Number
from gateway_site.management_api.resources import Resource
from gateway_site.management_api.tokens import Caller
from proxy.admin.backends import BackendForm
from proxy.credentials import CannotUnseal, unseal
from proxy.models import Backend

URL = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]{1,290}$"), Field(examples=["http://10.0.0.5:11434"])]
PEM = Annotated[str, StringConstraints(max_length=100_000)]


class NewBackend(Body):
    name: Name
    url: URL
    enabled: Annotated[bool, Field(description="False: takes no new calls and finishes its streams.")] = True
    slots: Annotated[Number, Field(description="Calls at a time per model: its OLLAMA_NUM_PARALLEL.")] = 1
    context_length: Number | None = None
    transport: Literal["wire", "httpx"] = "wire"
    ca_certificates: PEM = ""
    credential_header: Annotated[str, Field(max_length=100)] = ""
    proxy_url: Annotated[str, Field(max_length=300)] = ""
    client_certificate: PEM = ""
    http2: bool = False
    credential: Annotated[str, Field(max_length=4096, description="Write-only. Empty: as it is.")] = ""
    forget_credential: bool = False
    proxy_credential: Annotated[str, Field(max_length=1000, description="user:password. Write-only.")] = ""
    client_key: Annotated[str, Field(max_length=20_000, description="PEM. Write-only.")] = ""


class ShownBackend(BaseModel):
    id: int
    name: str
    url: str
    enabled: bool
    slots: int
    context_length: int | None
    transport: str
    ca_certificates: str
    credential_header: str
    proxy_url: str
    client_certificate: str
    http2: bool
    has_credential: bool
    has_proxy_credential: bool
    has_client_key: bool
    set_by_environment: bool
    created_at: datetime


COLUMNS = tuple(name for name in NewBackend.model_fields if name in ShownBackend.model_fields)
SECRETS = {
    "credential": "credential_encrypted",
    "proxy_credential": "proxy_credential_encrypted",
    "client_key": "client_key_encrypted",
}
Form = modelform_factory(Backend, form=BackendForm, fields=COLUMNS)


class Backends(Resource):
    path, one, scope, model = "backends", "backend", "config:write", Backend
    New, Shown = NewBackend, ShownBackend
    natural, compared = ("name",), COLUMNS[1:]

    def rows(self, caller: Caller) -> QuerySet[Any]:
        self._ask(caller, "view")
        return Backend.objects.current()

    def shown(self, row: Any) -> dict[str, Any]:
        plain = {name: getattr(row, name) for name in ShownBackend.model_fields if not name.startswith("has_")}
        return {**plain, **{f"has_{name}": bool(getattr(row, column)) for name, column in SECRETS.items()}}

    def _ask(self, caller: Caller, action: str) -> None:
        caller.require_everywhere("backends")
        if action != "view" and not caller.user.is_superuser:
            raise Forbidden("Only superusers change backends.")
        super()._ask(caller, action)

    def create(self, caller: Caller, new: Any) -> Status:
        self.may_create(caller, None)
        wanted = self._filled(Backend(), new.model_dump(), validate_unique=False)
        found = self.existing(wanted)
        if found is not None:
            self.refuse_others(found, wanted)
            return Status(200, self.answer(found))
        wanted.full_clean()
        wanted.save()
        return Status(201, self.answer(wanted))

    def refuse_others(self, found: Any, wanted: Any) -> None:
        super().refuse_others(found, wanted)
        other = [name for name, column in SECRETS.items() if _opened(found, column) != _opened(wanted, column)]
        if other:
            raise Conflict(f"The backend is there already, with another {', '.join(other)}. Change it with PATCH.")

    def change(self, caller: Caller, row: Any, given: Mapping[str, Any]) -> Any:
        self.may_change(caller, row, given)
        if row.set_by_environment and any(
            name in given and given[name] != getattr(row, name) for name in ("name", "url")
        ):
            raise Conflict("Its name and address are set by the environment, and written anew at each start.")
        changed = self._filled(row, {**model_to_dict(row, COLUMNS), **given})
        changed.save()
        return changed

    def _filled(self, row: Any, values: Mapping[str, Any], *, validate_unique: bool = True) -> Any:
        form = Form(dict(values), instance=row)
        if not validate_unique:
            form.validate_unique = lambda: None  # type: ignore[method-assign]  # what has this name is looked at next
        if not form.is_valid():
            name, errors = next(iter(form.errors.get_json_data().items()))
            raise Invalid(errors[0]["message"], field="" if name == "__all__" else name)
        return form.save(commit=False)

    def end(self, caller: Caller, row: Any) -> None:
        row.archive()


def _opened(row: Any, column: str) -> str:
    sealed = getattr(row, column)
    try:
        return unseal(sealed) if sealed else ""
    except CannotUnseal:
        return ""
