"""The JSON body of a call: decoded strictly, with the meaning that Ollama's own decoder gives it, and written anew.

Ollama decodes as Go does: keys match whatever their case, of repeated keys the last wins, the type is ignored. What is
checked here and what is sent on are one object, so there is nothing to smuggle. Pure.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.errors import BadRequest

# Caps on what a body is made of, brackets and signs in strings not counted. With them no body that is accepted
# holds the loop for long; a list of numbers (the `context` of an earlier answer) may be long, since it costs little.
MAX_DEPTH = 100
MAX_ELEMENTS = 400_000
MAX_KEYS = 100_000
MAX_CONTAINERS = 30_000
# Bodies up to this size cannot reach the caps, but for that on depth.
COUNTED_ABOVE = 64 << 10
SLICE = 256 << 10

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
    for _ in weighing(raw):
        pass
    return parsed(raw)


def weighing(raw: bytes) -> Iterator[None]:
    """Holds a body against the caps, a slice at a time, so that others can run in between. Raises BadRequest."""
    if len(raw) <= COUNTED_ABOVE:
        # Most bodies have so few brackets that they cannot be too deep.
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            Outline().add(raw)
        return
    outline = Outline()
    for start in range(0, len(raw), SLICE):
        outline.add(raw[start : start + SLICE])
        yield


def parsed(raw: bytes) -> dict[str, Any]:
    """The object in a body that was weighed. Raises BadRequest."""
    if not raw or (len(raw) < 1024 and raw.isspace()):
        raise BadRequest("missing request body")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc.msg} at position {exc.pos}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


class Outline:
    """What a body is made of, counted without parsing it. Bytes that are no JSON give some count, and fail later."""

    __slots__ = ("_containers", "_depth", "_elements", "_escaped", "_in_string", "_keys")

    def __init__(self) -> None:
        self._elements = self._keys = self._containers = self._depth = 0
        self._in_string = 0  # 0 or 1
        self._escaped = False  # the next byte is, by a backslash

    @property
    def counted(self) -> tuple[int, int, int, int]:
        """(commas, colons, opening brackets, levels still open)."""
        return self._elements, self._keys, self._containers, self._depth

    def add(self, raw: bytes) -> None:
        """Counts the next slice. Raises BadRequest beyond a cap."""
        outside = self._outside_of_strings(raw)
        opened = outside.count(b"[") + outside.count(b"{")
        self._elements += outside.count(b",")
        self._keys += outside.count(b":")
        self._containers += opened
        if self._elements > MAX_ELEMENTS or self._keys > MAX_KEYS or self._containers > MAX_CONTAINERS:
            raise BadRequest(
                f"the body has more than {MAX_ELEMENTS} elements, {MAX_KEYS} keys or {MAX_CONTAINERS} lists and objects"
            )
        if self._depth + opened <= MAX_DEPTH:
            self._depth += opened - outside.count(b"]") - outside.count(b"}")
        else:
            self._count_depth(outside.translate(None, _NO_BRACKETS))

    def _outside_of_strings(self, raw: bytes) -> bytes:
        if self._escaped and raw:
            raw, self._escaped = raw[1:], False
        self._escaped |= (len(raw) - len(raw.rstrip(b"\\"))) % 2 == 1
        if b"\\" in raw:
            # The backslash at the very end, if it is one, escapes the first byte of the next slice.
            raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = raw.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= (len(parts) - 1) & 1
        return outside

    def _count_depth(self, brackets: bytes) -> None:
        depth = self._depth
        for byte in brackets:
            if byte in b"[{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
            else:
                depth -= 1
        self._depth = depth


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
    names = schema.names
    for key in value.keys() - names:
        if not key.isascii() or key.lower() in names:
            break
    else:
        return value  # all that is unknown is plainly so
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        folded = fold(key)
        name = folded if folded in names else key
        if name in renamed:
            raise BadRequest(f'"{where}{name}" appears twice, in different spellings')
        if name is key and not key.isascii():
            raise BadRequest(f"unknown field {where}{key[:60]!r}: field names are ASCII")
        renamed[name] = item
    return renamed


def fold(key: str) -> str:
    """The spelling by which Go's decoder would find a field."""
    # casefold() covers U+017F (ſ → s); U+212A (the Kelvin sign) it maps to k as well.
    return key.casefold()


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


def small_number(name: str, value: Any) -> Any:
    """A number that fits Go's float32."""
    if number(name, value) is not None and abs(value) > 3.4028234e38:
        raise BadRequest(f'"{name}" is out of range')
    return value


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


def text_or_texts(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else texts(name, value)


def top_logprobs(name: str, value: Any) -> Any:
    value = integer(name, value)
    if value is not None and not 0 <= value <= 20:
        raise BadRequest("top_logprobs must be between 0 and 20")
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
