"""A kept answer."""

from dataclasses import dataclass
from typing import Self

import orjson

# What an entry takes in memory besides its body, about.
OVERHEAD = 600
_FORM = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """`body`: as the backend sent it, with the model's own name in it and its usage."""

    body: bytes
    stream: bool
    content_type: bytes
    named: str  # what it calls the model
    model: str  # canonical
    digest: str
    scope: str
    kept_at: float  # epoch seconds
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gpu_us: int = 0
    estimated: bool = False  # the tokens of an embedding that was made together with others

    @property
    def size(self) -> int:
        return len(self.body) + OVERHEAD

    def packed(self) -> bytes:
        facts = [
            _FORM, self.stream, self.content_type.decode("latin-1"), self.named, self.model, self.digest, self.scope,
            self.kept_at, self.prompt_tokens, self.completion_tokens, self.gpu_us, self.estimated,
        ]  # fmt: skip
        return orjson.dumps(facts) + b"\n" + self.body

    @classmethod
    def unpacked(cls, packed: bytes) -> Self | None:
        """None for what another version packed."""
        facts, _, body = packed.partition(b"\n")
        try:
            form, stream, content_type, *rest = orjson.loads(facts)
            return cls(body, stream, content_type.encode("latin-1"), *rest) if form == _FORM else None
        except (orjson.JSONDecodeError, ValueError, TypeError, AttributeError):
            return None
