"""What is noted of each change: who, from where, before and after; of secrets only that they changed.

Built on django-auditlog's entries and registry. The comparing is ours: its own reads the bytes of a digest as UTF-8,
and notes a change before the database has taken it. Bulk changes send no signals: they go through change().
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from auditlog import get_logentry_model
from auditlog.registry import AuditlogModelRegistry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ObjectDoesNotExist
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, router, transaction
from django.db.models.signals import post_delete, post_save, pre_save

from tenants.acting import who_acts
from tenants.announcements import rules_changed

# Characters kept of one value, and of the name of a row.
LONGEST_VALUE = 2000
LONGEST_NAME = 300
# Rows that a bulk change reads and writes at a time.
BATCH = 500

# What stands in the place of a secret.
HIDDEN = "(hidden)"
# A column of such a name is a secret even where nobody said so; one of bytes is in any case.
_SECRET = re.compile(r"(^|_)(digest|password|pepper|secret|token|credential|encrypted|sealed)$")

Columns = tuple[models.Field, ...]


@dataclass(frozen=True, slots=True)
class Tracked:
    columns: Columns
    hidden: frozenset[str]
    words: Mapping[str, Callable[[Any], Any]]
    tenant: Callable[[Any], int | None]
    name: Callable[[Any], str]
    only_made: bool


class Audited(models.Model):
    """Of our own tables: a row and the entry of its change are saved together, or neither."""

    class Meta:
        abstract = True

    def save(self, *args: Any, using: str | None = None, **kwargs: Any) -> None:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using, savepoint=False):
            super().save(*args, using=using, **kwargs)


_tracked: dict[type[models.Model], Tracked] = {}


def track(
    model: type[models.Model],
    *,
    ignored: Iterable[str] = (),
    hidden: Iterable[str] = (),
    words: Mapping[str, Callable[[Any], Any]] | None = None,
    many: Iterable[str] = (),
    tenant: Callable[[Any], int | None] = lambda row: None,
    name: Callable[[Any], str] = str,
    only_made: bool = False,
) -> None:
    """Has each change of a table audited. Called when its app is ready.

    `ignored`: columns that change by themselves (counters, moments of use). `hidden`: secrets besides those that go
    without saying. `words`: how a column is written, given the row. `many`: many-to-many fields. `tenant`: the id of
    whom a row concerns. `name`: what a row is called. `only_made`: that a row was made is noted, and nothing after.
    """
    columns = tuple(
        column
        for column in model._meta.concrete_fields
        if not (column.primary_key or column.name in set(ignored))
        and not (getattr(column, "auto_now", False) or getattr(column, "auto_now_add", False))
    )
    secrets = {
        column.name for column in columns if isinstance(column, models.BinaryField) or _SECRET.search(column.name)
    }
    _tracked[model] = Tracked(columns, frozenset({*secrets, *hidden}), words or {}, tenant, name, only_made)
    _registry.register(model, m2m_fields=set(many))


def tracked_models() -> list[type[models.Model]]:
    return list(_tracked)


# Bulk changes.


def change(rows: models.QuerySet, **values: Any) -> int:
    """As rows.update(): how many rows fitted. Each that really changed leaves an entry, and all workers look."""
    using = rows.db
    manager = rows.model._base_manager.using(using)
    relations = [column.name for column in _tracked[rows.model].columns if column.is_relation]
    count = 0
    with transaction.atomic(using=using):
        keys = sorted(rows.order_by().values_list("pk", flat=True))
        for start in range(0, len(keys), BATCH):
            # Locked by number, in one order; then only those that still are what was asked for, as update() has it.
            locked = manager.filter(pk__in=keys[start : start + BATCH]).order_by("pk").select_for_update()
            before = {row.pk: row for row in locked}
            fitting = list(rows.order_by().filter(pk__in=list(before)).values_list("pk", flat=True))
            count += manager.filter(pk__in=fitting).update(**values)
            after = manager.filter(pk__in=fitting).select_related(*relations).order_by("pk")
            found = [_entry(before[row.pk], row) for row in after]
            entries = get_logentry_model().objects.using(using)
            entries.bulk_create(entry for entry in found if entry is not None)
        rules_changed(using)
    return count


# Rows that are saved or deleted one by one.


def _before_saving(
    sender: type[models.Model],
    instance: Any,
    using: str,
    raw: bool = False,
    update_fields: frozenset[str] | None = None,
    **_: Any,
) -> None:
    instance._state.before_saving = None
    if raw or instance.pk is None or _tracked[sender].only_made or not _compared(sender, update_fields):
        return
    rows = sender._base_manager.using(using).filter(pk=instance.pk)
    if transaction.get_connection(using).in_atomic_block:
        # Locked already for the update that follows: what is noted as before is what was there.
        rows = rows.select_for_update()
    instance._state.before_saving = rows.first()


def _after_saving(
    sender: type[models.Model],
    instance: Any,
    created: bool,
    using: str,
    raw: bool = False,
    update_fields: frozenset[str] | None = None,
    **_: Any,
) -> None:
    before = instance._state.__dict__.pop("before_saving", None)
    columns = _compared(sender, update_fields)
    if raw or not columns or (_tracked[sender].only_made and not created):
        return
    after = instance
    if any(hasattr(instance.__dict__.get(column.attname), "resolve_expression") for column in columns):
        after = sender._base_manager.using(using).get(pk=instance.pk)
    _save(_entry(None if created else before, after, columns), using)


def _after_deleting(sender: type[models.Model], instance: Any, using: str, **_: Any) -> None:
    if not _tracked[sender].only_made:
        _save(_entry(instance, None), using)


def _save(entry: models.Model | None, using: str) -> None:
    if entry is not None:
        entry.save(using=using, force_insert=True)


def _compared(model: type[models.Model], names: frozenset[str] | None) -> Columns:
    columns = _tracked[model].columns
    return columns if names is None else tuple(column for column in columns if {column.name, column.attname} & names)


_registry = AuditlogModelRegistry(
    create=False,
    update=False,
    delete=False,
    access=False,
    custom={pre_save: _before_saving, post_save: _after_saving, post_delete: _after_deleting},
)


# What an entry says.


def _entry(before: models.Model | None, after: models.Model | None, columns: Columns | None = None) -> Any:
    """The entry of a change, not saved yet. None: nothing that is audited changed."""
    row: Any = before if after is None else after
    tracked, entries = _tracked[type(row)], get_logentry_model()
    columns = tracked.columns if columns is None else columns
    if before is not None and after is not None:
        _share_relations(before, after, tracked.columns)
        changes = _differences(before, after, columns, tracked)
        if not changes:
            return None
        action = entries.Action.UPDATE
    else:
        action = entries.Action.CREATE if before is None else entries.Action.DELETE
        changes = _contents(row, columns, tracked, was=after is None)
    concerned, was = (side and tracked.tenant(side) for side in (after, before))
    moved = before is not None and after is not None and concerned != was
    return entries(
        content_type=ContentType.objects.db_manager(row._state.db).get_for_model(row),
        object_pk=str(row.pk),
        object_id=row.pk if isinstance(row.pk, int) else None,
        object_repr=_name(row)[:LONGEST_NAME],
        action=action,
        changes=changes,
        tenant_id=concerned or was,
        # Of a row that went from one tenant to another, or to all, neither side's owners see the other's values.
        additional_data={"moved": True} if moved else None,
        **who_acts().columns(),
    )


def _share_relations(before: models.Model, after: models.Model, columns: Columns) -> None:
    """What both point at is asked for once."""
    for column in columns:
        if column.is_relation and column.is_cached(after) and _value(before, column) == _value(after, column):
            column.set_cached_value(before, column.get_cached_value(after))


def _differences(before: models.Model, after: models.Model, columns: Columns, tracked: Tracked) -> dict[str, list[Any]]:
    deferred = after.get_deferred_fields()
    changes = {}
    for column in columns:
        if column.attname in deferred or (old := _value(before, column)) == (new := _value(after, column)):
            continue
        if column.name in tracked.hidden:
            changes[column.name] = [HIDDEN if old else None, ("changed" if old else "set") if new else None]
        else:
            changes[column.name] = [_written(row, column, tracked) for row in (before, after)]
    return changes


def _contents(row: models.Model, columns: Columns, tracked: Tracked, *, was: bool) -> dict[str, list[Any]]:
    """Of a row that is new, or that `was`: what is not empty."""
    changes = {}
    for column in columns:
        if _value(row, column) in (None, "", b"", [], {}):
            continue
        hidden = HIDDEN if was else "set"
        written = hidden if column.name in tracked.hidden else _written(row, column, tracked)
        changes[column.name] = [written, None] if was else [None, written]
    return changes


def _value(row: models.Model, column: models.Field) -> Any:
    value = getattr(row, column.attname)
    if value is not None and isinstance(column, models.BinaryField):
        return bytes(value)
    return column.to_python(value)


def _written(row: models.Model, column: models.Field, tracked: Tracked) -> Any:
    """As JSON may have it, and no longer than it should be."""
    if column.name in tracked.words:
        return tracked.words[column.name](row)
    value = _value(row, column)
    if value is not None and column.is_relation:
        return _related(row, column)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, cls=DjangoJSONEncoder)
        return json.loads(text) if len(text) <= LONGEST_VALUE else _cut(text)
    return _cut(str(value))


def _related(row: models.Model, column: models.Field) -> str:
    try:
        return _cut(_name(getattr(row, column.name)))
    except ObjectDoesNotExist:
        return f"number {_value(row, column)}"


def _name(row: models.Model) -> str:
    try:
        return _tracked[type(row)].name(row) if type(row) in _tracked else str(row)
    except ObjectDoesNotExist:  # what it is named after is gone
        return f"{row._meta.verbose_name} {row.pk}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
