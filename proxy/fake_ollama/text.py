"""Made-up output: the same for the same question, and no two tokens of it alike."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

MAX_SCHEMA_DEPTH = 8
JSON_PIECE = 4


def words(seed: int | None = None, stem: str = "tok") -> Iterator[str]:
    """tok1, tok2, … for ever."""
    end = "" if seed is None else f"s{seed}"
    yield f"{stem}1{end}"
    for number in count(2):
        yield f" {stem}{number}{end}"


@lru_cache(256)
def first_words(length: int, seed: int | None = None, stem: str = "tok") -> tuple[str, ...]:
    source = words(seed, stem)
    return tuple(next(source) for _ in range(length))


@lru_cache(256)
def joined_words(pieces: tuple[str, ...]) -> str:
    return "".join(pieces)


def cut_at_stop(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, ...] | None:
    """The pieces up to the first stop sequence, or None if there is none."""
    text = "".join(pieces)
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not found:
        return None
    left = min(found)
    kept = []
    for piece in pieces:
        if left <= 0:
            break
        kept.append(piece[:left])
        left -= len(piece)
    return tuple(kept)


def size_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def tokens_of(size: int) -> int:
    return -(-size // 4)


def in_pieces(text: str, size: int = JSON_PIECE) -> tuple[str, ...]:
    return tuple(text[at : at + size] for at in range(0, len(text), size))


def instance(schema: Any, depth: int = 0) -> Any:
    """A small value that the JSON schema accepts."""
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return instance(schema[choice][0], depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or (kind is None and "properties" in schema):
        return {name: instance(part, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        length = max(1, schema.get("minItems", 1))
        return [instance(schema.get("items", {"type": "string"}), depth + 1) for _ in range(length)]
    return scalar(kind, schema)


def scalar(kind: str | None, schema: dict[str, Any]) -> Any:
    if kind == "integer":
        return int(schema.get("minimum", 1))
    if kind == "number":
        return float(schema.get("minimum", 1.5))
    if kind == "boolean":
        return True
    if kind == "string":
        return "tok1".ljust(schema.get("minLength", 0), "x")
    return None


def vector(model: str, text: str, length: int) -> list[float]:
    """Not normalised, as /api/embeddings gives it."""
    floats: list[float] = []
    block = 0
    while len(floats) < length:
        seed = f"{model}\0{block}\0{text}".encode("utf-8", "replace")
        digest = hashlib.blake2b(seed).digest()
        floats.extend((byte - 127.5) / 32 for byte in digest)
        block += 1
    return [round(value, 6) for value in floats[:length]]


def normalised(values: Sequence[float]) -> list[float]:
    norm = math.sqrt(math.fsum(value * value for value in values)) or 1.0
    return [round(value / norm, 8) for value in values]
