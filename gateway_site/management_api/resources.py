"""What all kinds of rows have in common: found within the rights of the caller, listed, created once, changed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

from django.db import connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Header, Path, Router
from ninja.responses import Status
from pydantic import BaseModel

from gateway_site.management_api import kept_answers
from gateway_site.management_api.errors import Conflict, Forbidden, Invalid, NotFound
from gateway_site.management_api.fields import BIGGEST_ID, changes_of
from gateway_site.management_api.paging import After, Size, page, page_of
from gateway_site.management_api.tokens import Caller
from tenants.acting import Via, acting
from tenants.announcements import rules_changed

IdempotencyKey = Annotated[
    str | None,
    Header(
        None,
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,255}$",
        description="The same key and body within a day: the same answer, and no second row.",
    ),
]
Id = Annotated[int, Path(ge=1, le=BIGGEST_ID)]
CONFIRMED = {
    "name": "confirmed",
    "in": "query",
    "required": False,
    "schema": {"type": "boolean", "default": False},
    "description": "What was refused with confirmation_needed is done.",
}


class Resource:
    """One kind of row. What differs between kinds is overridden."""

    path: ClassVar[str]
    one: ClassVar[str]  # as in "There is no …."
    scope: ClassVar[str]  # of the tokens that may change it
    model: ClassVar[type[Model]]
    New: ClassVar[type[BaseModel]]
    Shown: ClassVar[type[BaseModel]]
    # Fields of New that stay as they are.
    fixed: ClassVar[tuple[str, ...]] = ()
    # Columns of which there is one row, and those that must be the same for it to count as the row that was wanted.
    natural: ClassVar[tuple[str, ...]] = ()
    compared: ClassVar[tuple[str, ...]] = ()
    related: ClassVar[tuple[str, ...]] = ()
    # What the answer to a creation holds only once.
    secrets: ClassVar[tuple[str, ...]] = ()
    # The field of Shown that is in the path of one.
    identity: ClassVar[str] = "id"
    # Where a change may have to be confirmed: what for, for the document.
    asks_back: ClassVar[str] = ""

    def rows(self, caller: Caller) -> QuerySet[Any]:
        """What the caller may see. Raises Forbidden where that is nothing, whatever there is."""
        raise NotImplementedError

    def shown(self, row: Any) -> dict[str, Any]:
        """The fields of Shown."""
        return {name: getattr(row, name) for name in self.Shown.model_fields}

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of the model for the fields that were given."""
        return dict(given)

    def may_create(self, caller: Caller, row: Any) -> None:
        """Raises Forbidden."""
        self._ask(caller, "add")

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        """Raises Forbidden. `row`: as it is now."""
        self._ask(caller, "change")

    def may_end(self, caller: Caller, row: Any) -> None:
        self._ask(caller, "delete")

    def ask_back(self, caller: Caller, row: Any, *, ends: bool = False) -> None:
        """Raises Conflict where a change would do harm, and was not confirmed. `ends`: the row will be no more."""

    def end(self, caller: Caller, row: Any) -> None:
        row.delete()

    def _ask(self, caller: Caller, action: str) -> None:
        if not caller.oversees(self.model, action):
            raise Forbidden(f"Your rights do not reach so far as to {action} this {self.one}.")

    # What is done with all of them alike.

    def answer(self, row: Any) -> BaseModel:
        return self.Shown(**self.shown(row))

    def get(self, caller: Caller, **identity: Any) -> Any:
        """Foreign and missing ones answer alike (T1)."""
        row = self.rows(caller).filter(**identity).first()
        if row is None:
            raise NotFound(f"There is no such {self.one}, or it is not for you to see.")
        return row

    def locked(self, caller: Caller, **identity: Any) -> Any:
        pk = self.get(caller, **identity).pk
        if not self.model._default_manager.select_for_update().filter(pk=pk).exists():
            raise NotFound(f"There is no such {self.one} any more.")
        return self.get(caller, pk=pk)

    def admit(self, request: HttpRequest, caller: Caller) -> None:
        """Raises TooManyRequests, where creations are counted."""

    def create(self, caller: Caller, new: BaseModel) -> Status:
        """201 for a new row; 200 for one that was there, and is as was asked for."""
        row = self.build(caller, new)
        self.may_create(caller, row)
        row.clean_fields()
        row.clean()
        found = self.existing(row)
        if found is not None:
            self.refuse_others(found, row)
            return Status(200, self.answer(found))
        row.full_clean()
        self.ask_back(caller, row)
        row.save()
        return Status(201, self.answer(row))

    def build(self, caller: Caller, new: BaseModel) -> Any:
        return self.model(**self.columns(caller, new.model_dump()))

    def existing(self, row: Any) -> Any:
        """The row that there can be only one of."""
        if not self.natural:
            return None
        # So that two who create the same at once see one another.
        lock(self.path)
        rows = self.model._default_manager.filter(**{name: getattr(row, name) for name in self.natural})
        return rows.select_related(*self.related).order_by("pk").first()

    def refuse_others(self, found: Any, wanted: Any) -> None:
        if getattr(found, "archived_at", None):
            raise Conflict(f"The {self.one} was deleted. Restore it in the admin, or choose another name.")
        different = [name for name in self.compared if getattr(found, name) != getattr(wanted, name)]
        if different:
            names = ", ".join(name.removesuffix("_id") for name in different)
            raise Conflict(f"The {self.one} is there already, with another {names}. Change it with PATCH.")

    def change(self, caller: Caller, row: Any, given: Mapping[str, Any]) -> Any:
        columns = self.columns(caller, given)
        self.may_change(caller, row, columns)
        for name, value in columns.items():
            setattr(row, name, value)
        row.full_clean()
        if columns:
            self.ask_back(caller, row)
            row.save(update_fields=list(columns))
        return row


@contextmanager
def changing(request: HttpRequest) -> Iterator[Caller]:
    """Around every change: one transaction, noted as the caller's, and all workers look at once."""
    caller: Caller = request.auth  # type: ignore[attr-defined]
    with acting(caller.user, via=Via.API, name=f"token: {caller.token.name}"), transaction.atomic():
        yield caller
        rules_changed()


def lock(name: str) -> None:
    """Until the end of the transaction. SQLite has one writer at a time by itself."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"management api {name}"])


def required(rows: QuerySet[Any], field: str, value: str, **identity: Any) -> Any:
    """The row that a field names, of those the caller may name: foreign and missing ones are refused alike."""
    found = rows.filter(**identity).first()
    if found is None:
        raise Invalid(f"There is no {field} “{value}”, or it is not for you to use.", f"unknown_{field}", field=field)
    return found


def reading(request: HttpRequest) -> Caller:
    caller: Caller = request.auth  # type: ignore[attr-defined]
    caller.require("read")
    return caller


def serve(router: Router, resource: Resource, *, changes: bool = True, ends: bool = True) -> None:
    """The operations of a kind of row that has numbers."""
    Shown, New, Page, one = resource.Shown, resource.New, page_of(resource.Shown), resource.one
    Changes = changes_of(New, *resource.fixed)
    created = {200: Shown, 201: Shown}
    noun = resource.path.replace("-", "_")
    confirmed: dict[str, Any] = {}
    if resource.asks_back:
        confirmed = {"description": resource.asks_back, "openapi_extra": {"parameters": [CONFIRMED]}}

    @router.get("", response={200: Page}, operation_id=f"list_{noun}", summary=f"List {resource.path}")
    def list_rows(request: HttpRequest, limit: Size, after: After) -> dict[str, Any]:
        rows, following = page(resource.rows(reading(request)), limit, after)
        return {"items": [resource.answer(row) for row in rows], "next": following}

    @router.get("/{id}", response={200: Shown}, operation_id=f"get_{noun}", summary=f"One {one}")
    def get_row(request: HttpRequest, id: Id) -> BaseModel:
        return resource.answer(resource.get(reading(request), pk=id))

    @router.post("", response=created, operation_id=f"create_{noun}", summary=f"Create a {one}", **confirmed)
    def create_row(request: HttpRequest, body: New, key: IdempotencyKey) -> Status | HttpResponse:  # type: ignore[valid-type]
        with changing(request) as caller:
            caller.require(resource.scope)

            def create() -> Status:
                resource.admit(request, caller)
                return resource.create(caller, body)

            return kept_answers.once(caller, request, key, create, resource)

    if changes:

        @router.patch(
            "/{id}", response={200: Shown}, operation_id=f"change_{noun}", summary=f"Change a {one}", **confirmed
        )
        def change_row(request: HttpRequest, id: Id, body: Changes) -> BaseModel:  # type: ignore[valid-type]
            with changing(request) as caller:
                caller.require(resource.scope)
                row = resource.locked(caller, pk=id)
                return resource.answer(resource.change(caller, row, body.model_dump(exclude_unset=True)))

    if ends:

        @router.delete(
            "/{id}", response={204: None}, operation_id=f"delete_{noun}", summary=f"Delete a {one}", **confirmed
        )
        def end_row(request: HttpRequest, id: Id) -> Status:
            with changing(request) as caller:
                caller.require(resource.scope)
                row = resource.locked(caller, pk=id)
                resource.may_end(caller, row)
                resource.ask_back(caller, row, ends=True)
                resource.end(caller, row)
                return Status(204, None)
