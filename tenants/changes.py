"""How entries of the audit are shown: on pages and in CSV alike."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet

from tenants.acting import Via
from tenants.models import AuditEntry, Membership, User

# Entries that an export reads at a time.
PAGE = 1000

ACTIONS = {AuditEntry.Action.CREATE: "made", AuditEntry.Action.UPDATE: "changed", AuditEntry.Action.DELETE: "deleted",
           AuditEntry.Action.ACCESS: "read"}  # fmt: skip
TONES = {"made": "ok", "changed": "warn", "deleted": "bad", "read": "info"}

# What owners of a tenant see the changes of.
OWNERS_SEE = (
    "tenants.Tenant", "tenants.Membership", "tenants.Invitation", "tenants.ApiKey", "tenants.IPRule", "tenants.Limit",
    "proxy.Webhook", "usage.StoredText",
)  # fmt: skip
# They name who acted, which an owner is told as far as it concerns them.
_ACTORS = {"created_by", "invited_by"}

COLUMNS = (
    "entry", "time", "actor", "via", "address", "action", "kind", "object", "tenant", "column", "before", "after",
    "request",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One column before and after, as text; None: there was nothing."""

    column: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """An entry as somebody may see it. All texts are harmless."""

    number: int
    at: datetime
    actor: str
    via: str
    address: str
    action: str  # made, changed, deleted
    kind: str
    name: str
    tenant: str
    request_id: str
    lines: tuple[Line, ...]
    note: str = ""

    @property
    def tone(self) -> str:
        return TONES[self.action]

    @property
    def summary(self) -> str:
        """For a line of a list: what became what; of rows that came or went, the number of their values."""
        if self.action == "read":
            return ""
        if self.action != "changed":
            return f"{len(self.lines)} value{'' if len(self.lines) == 1 else 's'}"
        return "; ".join(f"{line.column}: {_short(line.before)} → {_short(line.after)}" for line in self.lines)


def shown(entry: AuditEntry) -> Change:
    """To whoever may read the audit."""
    return _shown(entry, entry.actor_name, entry.remote_addr or "", _lines(entry))


def shown_to_owner(entry: AuditEntry, people: Collection[tuple[int, int]]) -> Change:
    """Whoever runs the gateway is "an administrator" here, and where they were is theirs.

    `people`: (user, tenant) of the memberships of the tenants that the reader owns.
    """
    actor, address = entry.actor_name, entry.remote_addr or ""
    if not _is_known_to_owners(entry, people):
        actor, address = "an administrator", ""
    if (entry.additional_data or {}).get("moved"):
        note = "It came from elsewhere or went there: what it was and is cannot be shown here."
        return _shown(entry, actor, address, (), note)
    return _shown(entry, actor, address, _lines(entry, without=_ACTORS))


def people_of(user: User) -> set[tuple[int, int]]:
    return set(Membership.objects.filter(tenant__in=user.tenants_owned()).values_list("user_id", "tenant_id"))


def visible_to(user: User) -> QuerySet[AuditEntry]:
    """What an owner sees: what concerns their tenants."""
    return AuditEntry.objects.visible_to(user).filter(content_type__in=kinds(OWNERS_SEE))


def kinds(labels: Iterable[str]) -> list[int]:
    """Numbers of content types, which every process keeps in memory."""
    return [ContentType.objects.get_for_model(apps.get_model(label)).pk for label in labels]


def pages(entries: QuerySet[AuditEntry]) -> Iterator[AuditEntry]:
    """All entries, the newest first, so many at a time: their number is no matter."""
    entries = entries.order_by("-pk")
    page = list(entries[:PAGE])
    while page:
        yield from page
        page = list(entries.filter(pk__lt=page[-1].pk)[:PAGE])


def rows(changes: Iterable[Change]) -> Iterator[tuple[Any, ...]]:
    """Of a table of COLUMNS: one for each column that changed."""
    for change in changes:
        who = (change.number, change.at.isoformat(), change.actor, change.via, change.address)
        what = (change.action, change.kind, change.name, change.tenant)
        for line in change.lines or (Line("", None, None),):
            yield (*who, *what, line.column, line.before or "", line.after or "", change.request_id)


def harmless(text: str) -> str:
    """What is not printable, and what turns the direction of a line, is spelled out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _is_known_to_owners(entry: AuditEntry, people: Collection[tuple[int, int]]) -> bool:
    if entry.actor is None:
        return entry.via == Via.PAGES  # "not signed in", "invited: …"
    if (entry.actor_id, entry.tenant_id) in people:
        return True
    # Somebody who was in the tenant then.
    return entry.via == Via.PAGES and not (entry.actor.is_staff or entry.actor.is_superuser)


def _shown(entry: AuditEntry, actor: str, address: str, lines: Iterable[Line], note: str = "") -> Change:
    model = _model_of(entry)
    return Change(
        number=entry.pk,
        at=entry.timestamp,
        actor=harmless(actor),
        via=entry.get_via_display(),
        address=address,
        action=ACTIONS.get(entry.action, "changed"),
        kind=str(model._meta.verbose_name) if model else "something that is no more",
        name=harmless(entry.object_repr),
        tenant=harmless(str(entry.tenant or "")),
        request_id=entry.cid or "",
        lines=tuple(lines),
        note=note,
    )


def _model_of(entry: AuditEntry) -> type[Model] | None:
    return ContentType.objects.get_for_id(entry.content_type_id).model_class()


def _lines(entry: AuditEntry, without: Collection[str] = ()) -> Iterator[Line]:
    model = _model_of(entry)
    for column, values in (entry.changes or {}).items():
        if column in without:
            continue
        if isinstance(values, dict):
            names = harmless(", ".join(map(str, values["objects"])))
            added = values["operation"] == "add"
            yield Line(_label(model, column), None if added else names, names if added else None)
        else:
            yield Line(_label(model, column), *map(_text, values))


def _label(model: type[Model] | None, column: str) -> str:
    try:
        field = model._meta.get_field(column) if model else None
    except FieldDoesNotExist:
        field = None
    return harmless(str(getattr(field, "verbose_name", column.replace("_", " "))))


def _text(value: Any) -> str | None:
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return harmless(", ".join(map(str, value)))
    return harmless(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 60 else f"{text[:60]}…"
