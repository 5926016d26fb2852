"""The vectors in an answer of an embedding endpoint, as the bytes they came in: parsing them would hold the loop for
longer than asking for them anew. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from proxy.dialects.base import go_json


class OddVectors(Exception):
    """What a backend sent has not the form that is known."""


class Vectors(NamedTuple):
    each: list[bytes]  # JSON of one vector: a list, or a text in base64
    rest: dict[str, Any]  # what stands behind them


_NATIVE = b'"embeddings":['
_OPENAI = b'"data":['
_OBJECT = b'{"object":"embedding","embedding":'


def split(path: str, body: bytes, count: int) -> Vectors:
    """Raises OddVectors, also where there are not as many as were asked for."""
    opening = _NATIVE if path == "/api/embed" else _OPENAI
    _, found, behind = body.partition(opening)
    inner, _, tail = behind.rpartition(b"]")
    if not found or not tail.lstrip().startswith((b",", b"}")):
        raise OddVectors
    try:
        rest = orjson.loads(b"{" + tail.strip().lstrip(b","))
    except orjson.JSONDecodeError:
        raise OddVectors from None
    each = _native(inner) if path == "/api/embed" else _openai(inner)
    if len(each) != count or not isinstance(rest, dict):
        raise OddVectors
    return Vectors(each, rest)


def _native(inner: bytes) -> list[bytes]:
    if not (inner.startswith(b"[") and inner.endswith(b"]")):
        raise OddVectors
    each = [b"[%b]" % numbers for numbers in inner[1:-1].split(b"],[")]
    if any(b"[" in vector[1:] for vector in each):
        raise OddVectors
    return each


def _openai(inner: bytes) -> list[bytes]:
    objects = inner.split(b"},{")
    each: list[bytes] = []
    for number, one in enumerate(objects):
        whole = (b"" if number == 0 else b"{") + one + (b"" if number == len(objects) - 1 else b"}")
        vector, found, index = whole.removeprefix(_OBJECT).rpartition(b',"index":')
        if not whole.startswith(_OBJECT) or not found or index != b"%d}" % number:
            raise OddVectors
        if vector[:1] + vector[-1:] not in (b"[]", b'""'):
            raise OddVectors
        each.append(vector)
    return each


def joined(path: str, asked: str, each: Sequence[bytes], prompt_tokens: int, rest: dict[str, Any]) -> bytes:
    """An answer with these vectors. `asked`: what the client calls the model; `rest`: of the backend's own answer."""
    name = go_json(asked)
    if path == "/api/embed":
        said = {"total_duration": 0, "load_duration": 0, **rest, "prompt_eval_count": prompt_tokens}
        return b'{"model":%b,"embeddings":[%b],%b' % (name, b",".join(each), go_json(said)[1:])
    data = b",".join(b'%b%b,"index":%d}' % (_OBJECT, vector, number) for number, vector in enumerate(each))
    usage = go_json({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens})
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}\n' % (data, name, usage)


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """A number of tokens, shared out among inputs by their size (bytes); the sum stays the same."""
    whole, before, given = max(sum(sizes), 1), 0, 0
    each: list[int] = []
    for size in sizes:
        before += size
        until = total * before // whole
        each.append(until - given)
        given = until
    if each:
        each[-1] += total - given
    return each
