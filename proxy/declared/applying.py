"""Has the tables say what a file says: all of it, or nothing."""

from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection, transaction

from proxy.declared import document
from proxy.declared.document import Mapping, Node, Problem, Scalar, Sequence, Unreadable
from proxy.declared.fields import Wrong
from proxy.declared.kinds import KINDS, Change, Entry, Keys, Kind
from proxy.declared.world import Missing, World
from tenants.announcements import rules_changed

# Two of them would both make what neither has seen: one after the other. Any number that nobody else uses.
_LOCK = 0x6F67775F6170706C
MAX_PROBLEMS = 100


class Refused(ValueError):
    """`problems`, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = sorted(problems)


@dataclass(frozen=True, slots=True)
class Outcome:
    changes: list[Change]
    # TENANT/NAME → clear text of the keys that were made, which is told here and never again.
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    # What --prune would take away and may not.
    kept: list[str] = field(default_factory=list)


def apply(
    raw: bytes, *, environment: Lookup[str, str], directory: Path, dry_run: bool = False, prune: bool = False
) -> Outcome:
    """Raises Refused, DatabaseError. With `dry_run` it is all done, to learn what it does, and taken back."""
    try:
        said = document.read(raw)
    except Unreadable as exc:
        raise Refused([exc.problem]) from None
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        outcome = _Apply(said, World(environment, directory)).run(prune=prune)
        if dry_run:
            transaction.set_rollback(True)
        elif outcome.changes:
            rules_changed()
    return Outcome(outcome.changes, kept=outcome.kept) if dry_run else outcome


class _Apply:
    def __init__(self, said: Mapping, world: World) -> None:
        self.said = said
        self.world = world
        self.problems: list[Problem] = []
        self.changes: list[Change] = []

    def run(self, *, prune: bool) -> Outcome:
        kinds = {made.section: made for made in KINDS}
        for name, line in self.said.lines.items():
            if name not in kinds:
                self._complain(line, f"there is no kind “{name}”.{_meant(name, kinds)} There are {', '.join(kinds)}.")
        self._note_declared()
        taken: list[tuple[Kind, set[int]]] = []
        for made in KINDS:
            if made.section in self.said.entries:
                kind = made(self.world)
                kind.load()
                taken.append((kind, self._take(kind, self.said.entries[made.section])))
        if self.problems:
            raise Refused(self.problems[:MAX_PROBLEMS])
        kept = [name for kind, named in reversed(taken) for name in self._prune(kind, named)] if prune else []
        keys = {name: new.clear_text for kind, _ in taken if isinstance(kind, Keys) for name, new in kind.made.items()}
        return Outcome(self.changes, keys, kept)

    def _complain(self, line: int, text: str) -> None:
        self.problems.append(Problem(line, text))

    def _note_declared(self) -> None:
        for section in ("tenants", "users", "backends", "keys"):
            node = self.said.entries.get(section)
            for item in node.items if isinstance(node, Sequence) else ():
                given = item.entries if isinstance(item, Mapping) else {}
                parts = [part.text for name in ("tenant", "name") if isinstance(part := given.get(name), Scalar)]
                self.world.declared.add((section, "/".join(parts)))

    # Entries

    def _take(self, kind: Kind, node: Node) -> set[int]:
        """Primary keys of the rows that are named."""
        if kind.required and isinstance(node, Scalar) and node.is_null:
            return set()
        if not kind.required:
            items = [node]
        elif isinstance(node, Sequence):
            items = node.items
        else:
            self._complain(node.line, f"{kind.section}: write a list: each entry begins with a dash.")
            return set()
        named: dict[int, int] = {}
        for item in items:
            if (entry := self._entry(kind, item)) is None:
                continue
            try:
                row = self._put(kind, entry)
            except Missing:
                pass  # complained of where it is declared
            except Wrong as exc:
                self._complain(exc.line or entry.line, f"{kind.noun}: {exc}")
            except ValidationError as exc:
                self._complain_of(kind, entry, exc)
            else:
                if row.pk in named:
                    name = kind.name_of(row)
                    self._complain(entry.line, f"{kind.noun} {name} stands in line {named[row.pk]} already. Keep one.")
                named.setdefault(row.pk, entry.line)
        return set(named)

    def _entry(self, kind: Kind, node: Node) -> Entry | None:
        """What an entry gives, or None, having complained."""
        if not isinstance(node, Mapping):
            fields = ", ".join(kind.required) or "its fields"
            self._complain(node.line, f"{kind.noun}: write names and values, with {fields}.")
            return None
        before = len(self.problems)
        entry = Entry(node.line, node.lines, {}, node.entries)
        for name, value in node.entries.items():
            if name in kind.fields:
                try:
                    entry.values[name] = kind.fields[name].value(value)
                except Missing:
                    return None
                except Wrong as exc:
                    self._complain(exc.line or value.line, f"{kind.noun}: {name}: {exc}")
            elif name not in kind.secrets:
                meant = _meant(name, kind.known)
                self._complain(node.lines[name], f"{kind.noun}: there is no field “{name}”.{meant}")
        for name in kind.required:
            if name not in node.entries:
                self._complain(node.line, f"{kind.noun}: {name} is missing.")
        return entry if len(self.problems) == before else None

    def _put(self, kind: Kind, entry: Entry) -> Any:
        row = kind.find(entry)
        is_new = row is None
        if is_new:
            row = kind.model()
        columns = {} if is_new else _columns(row)
        before = {} if is_new else kind.described(row)
        kind.fill(row, entry)
        if is_new and (replaced := kind.replaced_by(row)) is not None:
            before = kind.described(replaced)
        after = kind.described(row)
        if not is_new and before == after and not entry.notes:
            return row
        kind.check(row, entry)
        after = kind.described(row)
        fields = {
            name: (before.get(name), after.get(name))
            for name in [*after, *(name for name in before if name not in after)]
            if before.get(name) != after.get(name)
        }
        fields.update((name, (None, note)) for name, note in entry.notes.items())
        if not is_new and not fields:
            return row  # written otherwise, and the same
        self.changes.append(Change("change" if before else "add", kind.noun, kind.name_of(row), fields))
        if not is_new:
            entry.columns = [name for name, value in _columns(row).items() if value != columns[name]]
        kind.save(row, entry)
        self.changes += kind.consequences
        kind.consequences = []
        return row

    def _complain_of(self, kind: Kind, entry: Entry, error: ValidationError) -> None:
        names = {made.attribute: made.name for made in kind.fields.values()}
        by_attribute = error.message_dict if hasattr(error, "error_dict") else {"__all__": error.messages}
        for attribute, messages in by_attribute.items():
            name = names.get(attribute, attribute)
            given = next((each for each in (name, f"{name}_env", f"{name}_file") if each in entry.lines), name)
            about = "" if attribute == "__all__" else f"{name}: "
            self._complain(entry.line_of(given), f"{kind.noun}: {about}{' '.join(messages)}")

    # Pruning

    def _prune(self, kind: Kind, named: set[int]) -> list[str]:
        """Takes away what the file does not name; returns what must stay."""
        kept = []
        for row in [*list(kind.rows.values()), *kind.twins]:
            if row.pk in named or row.pk is None:
                continue
            if kind.may_remove(row):
                self.changes.append(Change(kind.removal, kind.noun, kind.name_of(row), _left(kind.described(row))))
                kind.remove(row)
            elif kind.is_kept_with_a_word(row):
                kept.append(f"{kind.noun} {kind.name_of(row)}")
        return kept


def _columns(row: Any) -> dict[str, Any]:
    return {column.attname: getattr(row, column.attname) for column in row._meta.concrete_fields}


def _left(described: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (value, None) for name, value in described.items()}


def _meant(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""
