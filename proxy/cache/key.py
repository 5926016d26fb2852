"""Whether two calls ask the same question: all that can change an answer, and whose answer it may be. Pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

# How an answer is handed over, not what it is; `model` is named by what it resolved to.
_LEFT_OUT = frozenset(("stream", "keep_alive", "model"))
# The families of a client's headers that a backend gets.
_STEERING = (b"anthropic-", b"openai-")
# Bytes that are hashed before others may run.
SLICE = 256 << 10
KEY_BYTES = 20


class Subject(NamedTuple):
    """Of what and for whom an answer is."""

    scope: str
    epoch: int
    path: str
    model: str  # canonical
    digest: str  # of its weights and settings, as the backends report it
    context: int  # the num_ctx that was asked for, which decides who may answer
    steering: tuple[tuple[bytes, bytes], ...] = ()


def steering(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a client that might change an answer."""
    return tuple(sorted(pair for pair in headers if pair[0].startswith(_STEERING)))


def normalised(request: Mapping[str, Any], without: str = "") -> bytes:
    """A request in one spelling, less what does not change its answer. What lies deeper keeps the order of its keys,
    which models see. `without`: a field that is left out, too."""
    kept: dict[str, Any] = {}
    for name in sorted(request):
        value = request[name]
        if value is None or name in _LEFT_OUT or name == without:
            continue
        if name == "options":
            value = dict(sorted(value.items()))
        elif name == "stream_options" and isinstance(value, dict):
            value = {option: chosen for option, chosen in value.items() if option != "include_usage"}
            if not value:
                continue
        kept[name] = value
    return orjson.dumps(kept)


def material(subject: Subject, body: bytes) -> list[bytes]:
    """What is hashed. Each part is told apart from the next by its length."""
    named = orjson.dumps([
        subject.scope, subject.epoch, subject.path, subject.model, subject.digest, subject.context,
        [[name.decode("latin-1"), value.decode("latin-1")] for name, value in subject.steering],
    ])  # fmt: skip
    return [b"%d:" % len(named), named, b"%d:" % len(body), body]


class Hash:
    """Keyed, so that nobody who sees a key can tell by it what was asked (`secret`: 32 bytes)."""

    __slots__ = ("_state",)

    def __init__(self, secret: bytes) -> None:
        self._state = hashlib.blake2b(key=secret, digest_size=KEY_BYTES)

    def add(self, parts: Sequence[bytes]) -> "Hash":
        for part in parts:
            self._state.update(part)
        return self

    def adding(self, parts: Sequence[bytes]) -> Iterator[None]:
        """The same a slice at a time, so that others can run in between."""
        for part in parts:
            for start in range(0, len(part), SLICE):
                self._state.update(memoryview(part)[start : start + SLICE])
                yield

    def with_input(self, text: str) -> bytes:
        """The key of one input of many."""
        state = self._state.copy()
        state.update(text.encode("utf-8", "surrogatepass"))
        return state.digest()

    @property
    def key(self) -> bytes:
        return self._state.digest()
