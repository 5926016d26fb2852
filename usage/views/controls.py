"""Controls of the forms that narrow a page down: what can be chosen in them, and what is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from tenants.models import ApiKey, Tenant, User
from usage.reports import Scope
from usage.reports.questions import NOBODY

# Of more a list is no help: then its field takes what is written into it.
MOST_CHOICES = 200

LABELS = {
    "model": "Model",
    "key": "Key",
    "user": "User",
    "backend": "Backend",
    "tenant": "Tenant",
    "end_user": "End-user label",
}
HINTS = {"key": "its prefix", "user": "its number", "tenant": "its number"}

# What there is of a kind, for people to choose from; "" stands for all.
Names = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A link, and whether it leads to where one is."""

    label: str
    link: str
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """`options`: (value, label) of a list to choose from; without any it is a field to write into, with `names` as
    suggestions."""

    name: str
    label: str
    value: str
    options: Sequence[tuple[str, str]] = ()
    names: Sequence[str] = ()
    hint: str = ""

    @property
    def all_options(self) -> list[tuple[str, str]]:
        """Also with a value that is not among them, so that what is asked can be seen."""
        missing = self.value and self.value not in {value for value, _ in self.options}
        return [("", "All"), *self.options, *([(self.value, self.value)] if missing else [])]


def filter_fields(scope: Scope, given: Mapping[str, str], names: Sequence[str], models: Names) -> list[Field]:
    """Of the filters that make sense within the scope."""
    hidden = {"mine": {"user", "tenant"}, "all": set()}.get(scope.slug, {"tenant"})
    found = []
    for name in names:
        if name in hidden and not given.get(name):
            continue
        value = _told_again(name, given.get(name, ""))
        # Of what is not this scope's to choose, no names are told (T1); but that it is asked can be seen.
        options = [] if name in hidden else _options(name, scope)
        suggested = list(models())[:MOST_CHOICES] if name == "model" else []
        found.append(Field(name, LABELS[name], value, options, suggested, HINTS.get(name, "")))
    return found


def _told_again(name: str, value: str) -> str:
    """What the address says, as far as it can be a value of the filter."""
    is_number = name in ("user", "tenant")
    return value if not is_number or value == NOBODY or (value.isascii() and value.isdigit()) else ""


def _options(name: str, scope: Scope) -> list[tuple[str, str]]:
    if name == "key":
        keys = ApiKey.objects.filter(scope.rows)
        found = _few(keys, "prefix", "name")
        return [(prefix, f"{label} ({prefix})") for prefix, label in found]
    if name == "user" and scope.slug.startswith("tenant-"):
        found = _few(User.objects.filter(memberships__tenant=int(scope.slug.removeprefix("tenant-"))), "pk", "username")
        return [*found, (NOBODY, "Service keys")] if found else []
    return _few(Tenant.objects.all(), "pk", "name") if name == "tenant" else []


def _few(rows: QuerySet[Any], value: str, label: str) -> list[tuple[str, str]]:
    """By their labels; none if there are too many to choose from."""
    # Not sorted by the database, which would sort them all to show some.
    found = [(str(pk), name) for pk, name in rows.order_by().values_list(value, label)[: MOST_CHOICES + 1]]
    return sorted(found, key=lambda option: (option[1], option[0])) if len(found) <= MOST_CHOICES else []
