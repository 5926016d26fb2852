"""How the values of a file are written and read. Pure: a node in, a value or Wrong out; a value in, plain data out."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from django.db import models

from proxy.declared.document import Mapping, Node, Scalar, Sequence
from tenants import money
from tenants.management.administration import moment as parse_moment

Read = Callable[[Node], Any]

_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?", re.ASCII)
# In place of what a field means when it is null: it cannot be.
NEVER = object()


class Wrong(ValueError):
    """What is to be written in place of a value. `line`: where, if not where the value begins."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True, slots=True)
class Field:
    name: str  # in the file
    attribute: str  # of the row
    read: Read
    shown: Callable[[Any], Any]
    default: Any = None
    empty: Any = NEVER  # what null stands for

    def value(self, node: Node) -> Any:
        """Raises Wrong."""
        if isinstance(node, Scalar) and node.is_null:
            if self.empty is NEVER:
                raise Wrong("this cannot be empty.")
            return self.empty
        return self.read(node)


def of_column(model: type[models.Model], attribute: str, name: str = "") -> Field:
    """The field of a column, written as its type says."""
    column = model._meta.get_field(attribute)
    assert isinstance(column, models.Field)
    read, shown = _ways(column, is_money=attribute.endswith("_nano"))
    default = column.get_default()
    empty: Any = NEVER
    if column.null:
        empty = None
    elif column.blank and not isinstance(column, models.BooleanField):
        empty = default
    return Field(name or attribute.removesuffix("_nano"), attribute, read, shown, default, empty)


def _ways(column: "models.Field[Any, Any]", *, is_money: bool) -> tuple[Read, Callable[[Any], Any]]:
    if column.choices:
        return one_of(*(str(value) for value, _ in column.flatchoices if value)), str
    if isinstance(column, models.BooleanField):
        return flag, bool
    if is_money:
        return amount, money.shown
    if isinstance(column, models.IntegerField):
        return number, int
    if isinstance(column, models.DateTimeField):
        return moment, moment_shown
    if isinstance(column, models.JSONField):
        return (options, dict) if column.default is dict else (names, list)
    return text, str


def text(node: Node) -> str:
    if not isinstance(node, Scalar):
        raise Wrong("write one text.")
    return node.text


def flag(node: Node) -> bool:
    if not isinstance(node, Scalar) or not node.plain or node.text not in ("true", "false", "True", "False"):
        raise Wrong("write true or false.")
    return node.text in ("true", "True")


def number(node: Node) -> int:
    if not isinstance(node, Scalar) or not node.plain or not _NUMBER.fullmatch(node.text):
        raise Wrong("write a whole number.")
    return int(node.text)


def amount(node: Node) -> int:
    """Nano-units of what is written in units of the currency."""
    written = text(node)
    try:
        return money.to_nano(written[:100])
    except ValueError as exc:
        raise Wrong(str(exc)) from None


def moment(node: Node) -> datetime:
    written = text(node)
    try:
        return parse_moment(written)
    except ArgumentTypeError as exc:
        raise Wrong(f"{exc}.") from None


def moment_shown(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def names(node: Node) -> list[str]:
    if not isinstance(node, Sequence):
        raise Wrong('write a list, as in [llama3.2, "qwen3:*"].')
    return [text(item) for item in node.items]


def options(node: Node) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise Wrong("write names with numbers, as in {num_gpu: 99}.")
    return {name: _option(value) for name, value in node.entries.items()}


def _option(node: Node) -> bool | int | float:
    if isinstance(node, Scalar) and node.plain:
        if node.text in ("true", "false", "True", "False"):
            return node.text in ("true", "True")
        if _NUMBER.fullmatch(node.text):
            return int(node.text)
        if _DECIMAL.fullmatch(node.text) and isfinite(float(node.text)):
            return float(node.text)
    raise Wrong("write a number, true or false.", node.line)


def one_of(*values: str) -> Read:
    def read(node: Node) -> str:
        written = text(node)
        if written not in values:
            raise Wrong(f"{written!r} is none of {', '.join(values)}.")
        return written

    return read
