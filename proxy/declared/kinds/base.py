"""What the kinds of entries have in common: how an entry finds its row, and how a row is written as an entry."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.db import models

from proxy.declared.document import Node
from proxy.declared.fields import Field, Wrong, of_column
from proxy.declared.world import World
from tenants.models import ApiKey, Tenant

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """`fields`: name → (before, after), as a file would write them; None: not given."""

    action: str  # add, change, or how something is taken away: archive, revoke, switch off, delete
    noun: str
    name: str
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def takes_access_away(self) -> bool:
        return self.action in ("revoke", "switch off") or (self.action, self.noun) == ("archive", "tenant")


@dataclass
class Entry:
    """One entry of a file on its way into its row. `values`: what it gives, by field."""

    line: int
    lines: dict[str, int]
    values: dict[str, Any]
    nodes: dict[str, Node]
    # What shows in no field: secrets that are set or replaced.
    notes: dict[str, str] = field(default_factory=dict)
    # The columns of its row that differ from the database. None: all of them, of a new row.
    columns: list[str] | None = None

    def line_of(self, name: str) -> int:
        return self.lines.get(name, self.line)


class Kind:
    section: ClassVar[str]
    noun: ClassVar[str]
    model: ClassVar[type[models.Model]]
    required: ClassVar[tuple[str, ...]]
    # Fields that are no columns: they say where secrets are.
    secrets: ClassVar[tuple[str, ...]] = ()
    removal: ClassVar[str] = "delete"

    def __init__(self, world: World) -> None:
        self.world = world
        self.fields: dict[str, Field] = {made.name: made for made in self.make_fields()}
        self.rows: dict[Hashable, Any] = {}
        # Further rows of the same meaning, which only the admin or SQL can make.
        self.twins: list[Any] = []
        # What else changed because an entry did.
        self.consequences: list[Change] = []

    def make_fields(self) -> Iterable[Field]:
        raise NotImplementedError

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.fields, *self.secrets)

    # Rows

    def queryset(self) -> Iterable[Any]:
        return self.model._default_manager.order_by("pk")

    def load(self) -> None:
        for row in self.queryset():
            identity = self.identity(row)
            if identity in self.rows:
                self.twins.append(row)
            else:
                self.rows[identity] = row

    def identity(self, row: Any) -> Hashable:
        """Two rows with the same are the same to a file."""
        return tuple(getattr(row, self.fields[name].attribute) for name in self.required)

    def find(self, entry: Entry) -> Any:
        """The row of an entry, or None where there is none yet. Raises Wrong."""
        row = self.model()
        self.set(row, entry.values)
        return self.rows.get(self.identity(row))

    def set(self, row: Any, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(row, self.fields[name].attribute, value)

    def fill(self, row: Any, entry: Entry) -> None:
        """Has a row, found or new, say what the entry says. Raises Wrong."""
        self.set(row, entry.values)

    def check(self, row: Any, entry: Entry) -> None:
        """Raises ValidationError for what the admin would not take either."""
        row.full_clean()

    def save(self, row: Any, entry: Entry) -> None:
        # No more than what differs: somebody may change the rest of the row at the same moment.
        row.save(update_fields=entry.columns)
        self.rows[self.identity(row)] = row

    def replaced_by(self, row: Any) -> Any:
        """The row that a new one takes the place of, which stays for the past."""
        return None

    def may_remove(self, row: Any) -> bool:
        """Whether --prune takes a row away that the file does not name."""
        return True

    def is_kept_with_a_word(self, row: Any) -> bool:
        """Whether it is said of a row that --prune may not take it away."""
        return False

    def remove(self, row: Any) -> None:
        row.delete()

    # Entries

    def described(self, row: Any) -> Plain:
        """What a file says of a row; a field that is as it would be without being given is left out."""
        found = {}
        for made in self.fields.values():
            value = getattr(row, made.attribute)
            if value is not None and (value != made.default or made.name in self.required):
                found[made.name] = made.shown(value)
        return found

    def name_of(self, row: Any) -> str:
        return str(row)

    def is_exported(self, row: Any) -> bool:
        return True


def columns(model: type[models.Model], *attributes: str, **renamed: str) -> list[Field]:
    """Fields of columns; renamed: name in the file = column."""
    made = [of_column(model, attribute) for attribute in attributes]
    return [*made, *(of_column(model, attribute, name) for name, attribute in renamed.items())]


def refuse_archived(kind: Kind, row: Any, entry: Entry) -> None:
    if row.archived_at:
        raise Wrong(
            f"a {kind.noun} of this name was deleted. Restore it in the admin, or choose another name.", entry.line
        )


def is_of_what_is_there(tenant: Tenant | None, *keys: ApiKey | None) -> bool:
    """Rules of what was deleted or revoked say nothing any more, and could not be referred to."""
    return (tenant is None or tenant.archived_at is None) and all(key is None or key.revoked_at is None for key in keys)
