"""The JSON body of a call: decoded strictly, with the meaning that Ollama's own decoder gives it, and written anew.

Ollama decodes as Go does: keys match whatever their case, of repeated keys the last wins, the type is ignored. What is
checked here and what is sent on are one object, so there is nothing to smuggle. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.errors import BadRequest

MAX_DEPTH = 100
# Bodies below this are parsed without counting: the worst of them holds the loop for about 10 ms.
COUNTED_ABOVE = 512 << 10
MAX_STRUCTURAL_BYTES = 400_000

_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")

Check = Callable[[str, Any], Any]
"""(name of the field, value) → the value to use. Raises BadRequest naming the field."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of an object that mean something to Ollama, each with its check. Others pass if they are ASCII."""

    fields: Mapping[str, Check]
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(self.fields))


def decode(raw: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises BadRequest."""
    if not raw or raw.isspace():
        raise BadRequest("missing request body")
    if len(raw) > COUNTED_ABOVE:
        structural = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        # Commas in a long text are no structure; only where they could be is it worth the second look.
        if structural > MAX_STRUCTURAL_BYTES and _structural_bytes(raw) > MAX_STRUCTURAL_BYTES:
            raise BadRequest(f"the body has more than {MAX_STRUCTURAL_BYTES} elements")
    openings = raw.count(b"{") + raw.count(b"[")
    if openings > MAX_DEPTH and _depth_in_bytes(raw) > MAX_DEPTH:
        raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc.msg} at position {exc.pos}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def read(raw: bytes, schema: Schema) -> dict[str, Any]:
    """Decodes a body, brings its keys into Ollama's spelling and checks each field. Raises BadRequest."""
    return conform("", decode(raw), schema)


def conform(where: str, value: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """The object with its keys spelled as in the schema and its fields checked; the order of keys is kept."""
    if not value.keys() <= schema.names:
        value = _respelled(where, value, schema)
    fields = schema.fields
    for name in value:
        check = fields.get(name)
        if check is not None:
            checked = check(where + name, value[name])
            if checked is not value[name]:
                value[name] = checked
    return value


def _respelled(where: str, value: dict[str, Any], schema: Schema) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        folded = fold(key)
        name = folded if folded in schema.names else key
        if name in renamed:
            raise BadRequest(f'"{where}{name}" appears twice, in different spellings')
        if name is key and not key.isascii():
            raise BadRequest(f"unknown field {where}{key!r}: field names are ASCII")
        renamed[name] = item
    return renamed


def fold(key: str) -> str:
    """The spelling by which Go's decoder would find a field."""
    # casefold() covers U+017F (ſ → s); U+212A (the Kelvin sign) it maps to k as well.
    return key.casefold()


def _unquoted(raw: bytes) -> bytes:
    """The bytes outside of strings, quotes left out."""
    parts = raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    return b"".join(parts[::2])


def _structural_bytes(raw: bytes) -> int:
    bare = _unquoted(raw)
    return bare.count(b",") + bare.count(b"[") + bare.count(b"{")


def _depth_in_bytes(raw: bytes) -> int:
    """How deep the brackets outside of strings go. Stops counting one beyond the cap."""
    depth = deepest = 0
    for byte in _unquoted(raw).translate(None, _NO_BRACKETS):
        if byte in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    break
        else:
            depth -= 1
    return deepest


# The checks of single fields. A null stands for an absent field, as it does for Ollama's pointer fields.


def anything(name: str, value: Any) -> Any:
    return value


def text(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise BadRequest(f'"{name}" must be a string')
    return value


def boolean(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f'"{name}" must be true or false')
    return value


def integer(name: str, value: Any) -> Any:
    if value is None or type(value) is int:
        if value is not None and not -(2**63) <= value < 2**63:
            raise BadRequest(f'"{name}" is out of range')
        return value
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise BadRequest(f'"{name}" must be a whole number')


def number(name: str, value: Any) -> Any:
    if value is None or type(value) in (int, float):
        return value
    raise BadRequest(f'"{name}" must be a number')


def obj(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f'"{name}" must be an object')
    return value


def array(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, list):
        raise BadRequest(f'"{name}" must be a list')
    return value


def texts(name: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and all(type(item) is str for item in value)):
        raise BadRequest(f'"{name}" must be a list of strings')
    return value


def integers(name: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and all(type(item) is int for item in value)):
        raise BadRequest(f'"{name}" must be a list of whole numbers')
    return value


def nested(schema: Schema) -> Check:
    """An object with a schema of its own."""

    def check(name: str, value: Any) -> Any:
        return obj(name, value) if value is None else conform(f"{name}.", obj(name, value), schema)

    return check


def list_of(schema: Schema) -> Check:
    """A list of objects with a schema of their own."""

    def check(name: str, value: Any) -> Any:
        if array(name, value) is None:
            return value
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise BadRequest(f'"{name}[{index}]" must be an object')
            conformed = conform(f"{name}[].", item, schema)
            if conformed is not item:
                value[index] = conformed
        return value

    return check
