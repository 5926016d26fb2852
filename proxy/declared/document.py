"""A YAML file as a tree with line numbers. Pure.

Of YAML only what configuration needs: no anchors, aliases and tags, and no guessing of types. A scalar keeps its text,
and the field that it stands at says what it is: 0.15 never becomes a float, nor `no` a Boolean.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import yaml

MAX_BYTES = 16 << 20
MAX_NODES = 2_000_000
MAX_DEPTH = 8

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = ("", "~", "null", "Null", "NULL")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong at a line, which counts from 1; 0: with the file as a whole."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


class Unreadable(ValueError):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(line, text)


@dataclass(frozen=True, slots=True)
class Scalar:
    line: int
    text: str
    plain: bool  # without quotes

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Sequence:
    line: int
    items: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mapping:
    line: int
    entries: dict[str, "Node"] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of the names


Node = Scalar | Sequence | Mapping


def read(raw: bytes) -> Mapping:
    """The file's one mapping. Raises Unreadable."""
    if len(raw) > MAX_BYTES:
        raise Unreadable(0, f"The file is larger than {MAX_BYTES >> 20} MiB.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise Unreadable(raw.count(b"\n", 0, exc.start) + 1, "This is not UTF-8.") from None
    if bad := _UNPRINTABLE.search(text):
        raise Unreadable(text.count("\n", 0, bad.start()) + 1, f"The character {bad[0]!r} cannot stand in YAML.")
    try:
        node = _Composer(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as exc:
        raise _explained(exc, text) from None
    except yaml.YAMLError as exc:
        raise Unreadable(0, f"This is not YAML: {exc}.") from None
    if node is None:
        raise Unreadable(0, "The file is empty. Name at least one kind, such as tenants.")
    if not isinstance(node, Mapping):
        raise Unreadable(node.line, "The file must hold names of kinds, such as tenants, and what is of each.")
    return node


def _explained(exc: yaml.MarkedYAMLError, text: str) -> Unreadable:
    mark = exc.problem_mark or exc.context_mark
    number = mark.line + 1 if mark else 0
    lines = text.splitlines()
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Unreadable(number, "There is a tab in the indentation. YAML takes only blanks there.")
    context = f" ({exc.context})" if exc.context else ""
    return Unreadable(number, f"This is not YAML: {exc.problem or exc}{context}.")


class _Composer:
    def __init__(self, events: Iterable[yaml.Event]) -> None:
        self._events: Iterator[yaml.Event] = iter(events)
        self._nodes = 0

    def document(self) -> Node | None:
        next(self._events)  # the start of the stream
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        node = self._node(next(self._events), 1)
        next(self._events)
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise Unreadable(_line(event), "A second document begins here (---). Write one.")
        return None if isinstance(node, Scalar) and node.is_null else node

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = _line(event)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Unreadable(line, f"The file holds more than {MAX_NODES} values.")
        if depth > MAX_DEPTH:
            raise Unreadable(line, f"This is nested more than {MAX_DEPTH} deep.")
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(line, f"*{event.anchor}: aliases are not taken. Write it out.")
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor is not None:
            raise Unreadable(line, f"&{event.anchor}: anchors are not taken. Write it out where it is needed.")
        if event.tag is not None:
            raise Unreadable(line, f"The tag {event.tag} is not taken. Write the value alone.")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, plain=event.style in (None, ""))
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(Sequence(line), depth)
        return self._mapping(Mapping(line), depth)

    def _sequence(self, sequence: Sequence, depth: int) -> Sequence:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            sequence.items.append(self._node(event, depth + 1))
        return sequence

    def _mapping(self, mapping: Mapping, depth: int) -> Mapping:
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._node(event, depth + 1)
            if not isinstance(name, Scalar):
                raise Unreadable(name.line, "The name of a field must be a text.")
            if name.text in mapping.entries:
                first = mapping.lines[name.text]
                raise Unreadable(name.line, f"{name.text} stands in line {first} already. Keep one of them.")
            mapping.lines[name.text] = name.line
            mapping.entries[name.text] = self._node(next(self._events), depth + 1)
        return mapping


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark is not None else 0
