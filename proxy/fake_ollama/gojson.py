"""JSON as Go's encoding/json reads and writes it."""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

import orjson

AFTER_PAIR = "after object key:value pair"
STRING_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
MAX_DEPTH_ERROR = "exceeded max depth"


class DecodeError(ValueError):
    """Carries Go's own text."""


class EmptyBody(DecodeError):
    pass


@dataclass(frozen=True)
class Kind:
    """A Go type: what it takes, and how the decoder names it in an error."""

    name: str
    accepts: tuple[type, ...]
    # For a pointer, null means absent; any other kind keeps what an earlier duplicate said.
    pointer: bool = True
    item: "Kind | None" = None
    struct: "Struct | None" = None
    merges: bool = False

    def fits(self, value: Any) -> bool:
        if value is None:
            return self.pointer
        if self.struct is not None:
            return type(value) is dict and self.struct.fits(value)
        if self.item is not None:
            return type(value) is list and all(map(self.item.fits, value))
        return not self.accepts or type(value) in self.accepts


@dataclass(frozen=True)
class Struct:
    name: str
    fields: dict[str, Kind]
    mergeable: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = [name for name, kind in self.fields.items() if kind.merges or kind.struct]
        object.__setattr__(self, "mergeable", tuple(b'"%s"' % name.encode() for name in names))

    def fits(self, value: dict[str, Any]) -> bool:
        """Whether every key is spelled as Go spells it and every value has its type."""
        for key, item in value.items():
            kind = self.fields.get(key)
            if kind is None:
                if fold(key) in self.fields:
                    return False
            elif not kind.fits(item):
                return False
        return True


STRING = Kind("string", (str,), pointer=False)
BOOL = Kind("bool", (bool,))
INT = Kind("int", (int,))
FLOAT = Kind("float64", (int, float))
FLOAT32 = Kind("float32", (int, float))
ANY = Kind("interface {}", ())
MAP = Kind("map[string]interface {}", (dict,), merges=True)
STRINGS = Kind("[]string", (list,), item=STRING)
INTS = Kind("[]int", (list,), item=INT)


def list_of(item: Kind, name: str) -> Kind:
    return Kind(name, (list,), item=item)


def nested(struct: Struct, name: str) -> Kind:
    return Kind(name, (dict,), struct=struct)


@lru_cache(8192)
def fold(key: str) -> str:
    # Besides upper case, two letters outside ASCII fold into it: long s and the Kelvin sign.
    return key.replace("\u017f", "s").replace("\u212a", "k").lower()


def decode(body: bytes, struct: Struct) -> dict[str, Any]:
    """The first JSON value of the body, bound to the struct as Go binds it."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return decode_as_go(body, struct)
    if type(value) is dict and struct.fits(value) and not any(body.count(name) > 1 for name in struct.mergeable):
        return value
    return decode_as_go(body, struct)


class Pairs(list[tuple[str, Any]]):
    """An object with its duplicates."""


def decode_as_go(body: bytes, struct: Struct) -> dict[str, Any]:
    value = first_value(body)
    if value is None:
        return {}
    if not isinstance(value, Pairs):
        raise DecodeError(f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct.name}")
    return bind_struct(struct, value, {}, struct.name)


def first_value(body: bytes) -> Any:
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise EmptyBody("EOF")
    decoder = json.JSONDecoder(object_pairs_hook=Pairs, parse_constant=refuse_constant)
    try:
        return decoder.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise DecodeError(go_syntax_error(error)) from error
    except RecursionError as error:
        raise DecodeError(MAX_DEPTH_ERROR) from error


def refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"invalid character '{name.lstrip('-')[0]}' looking for beginning of value")


def go_syntax_error(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    where = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Illegal trailing comma before end of object": "looking for beginning of object key string",
        "Illegal trailing comma before end of array": "looking for beginning of value",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": AFTER_PAIR,
        "Invalid control character at": "in string literal",
        "Invalid \\escape": "in string escape code",
        "Invalid \\uXXXX escape": "in \\u hexadecimal character escape",
    }.get(error.msg, "looking for beginning of value")
    if where == AFTER_PAIR and in_array(error.doc[: error.pos]):
        where = "after array element"
    char = error.doc[error.pos]
    shown = {"'": "\\'", '"': '"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, char)
    return f"invalid character '{shown}' {where}"


def in_array(text: str) -> bool:
    """Whether the innermost bracket still open is a square one."""
    depth = 0
    for char in reversed(STRING_LITERAL.sub("", text)):
        if char in "]}":
            depth += 1
        elif char in "[{":
            if depth == 0:
                return char == "["
            depth -= 1
    return False


def bind_struct(struct: Struct, pairs: Pairs, into: dict[str, Any], path: str) -> dict[str, Any]:
    for key, value in pairs:
        name = key if key in struct.fields else fold(key)
        kind = struct.fields.get(name)
        if kind is None:
            continue
        if value is None and not kind.pointer:
            continue
        into[name] = bind(kind, value, into.get(name), f"{path}.{name}")
    return into


def bind(kind: Kind, value: Any, before: Any, path: str) -> Any:
    if value is None:
        return None
    if kind.struct is not None and isinstance(value, Pairs):
        return bind_struct(kind.struct, value, before or {}, path)
    if kind.item is not None and type(value) is list:
        return [bind(kind.item, item, None, path) for item in value]
    plain = plain_value(value)
    if (kind.accepts and type(plain) not in kind.accepts) or kind.struct or kind.item:
        raise DecodeError(
            f"json: cannot unmarshal {kind_of(value, kind)} into Go struct field {path} of type {kind.name}"
        )
    if kind.merges and before:
        return {**before, **plain}
    return plain


def plain_value(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {plain_value(key): plain_value(item) for key, item in value}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def kind_of(value: Any, wanted: Kind | None = None) -> str:
    if isinstance(value, Pairs | dict):
        return "object"
    if isinstance(value, list):
        return "array"
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    # Only a number that does not fit an integer is quoted.
    return f"number {value}" if wanted is INT else "number"


def encode(value: Any) -> bytes:
    """Compact JSON with the escapes Go adds for the sake of HTML."""
    return escape_html(orjson.dumps(value))


def escape_html(data: bytes) -> bytes:
    if b"<" in data or b">" in data or b"&" in data:
        data = data.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data
