"""What is asked about a call that nobody makes, and what is answered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from proxy.client_address import Address


class Verdict(StrEnum):
    PASSES = "passes"
    WAITS = "waits"
    REFUSED = "refused"
    UNKNOWN = "not known here"
    NOT_ASKED = "not asked"  # a step before it must be passed for the question to make sense


@dataclass(frozen=True, slots=True)
class Question:
    """`key_id`: None for a call without a key. `secret`: the whole key, where that is to be judged, too."""

    address: Address | None
    path: bytes = b"/api/chat"
    method: str = ""  # "": the one that the path has
    model: str = ""
    key_id: int | None = None
    is_without_key: bool = False
    secret: bytes = field(repr=False, default=b"")
    # Rules for all, other tenants' load and names of backends are for operators.
    for_operator: bool = True
    # Of the keys that calls without a key are made as, those that the reader may know of. None: all.
    acting_keys: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    title: str
    verdict: Verdict
    text: str
    code: str = ""  # of a refusal, as it is counted (refusal_reasons.py)
    facts: Sequence[tuple[str, str]] = ()

    @property
    def tone(self) -> str:
        """For the badge of a page."""
        return {Verdict.PASSES: "ok", Verdict.REFUSED: "bad", Verdict.WAITS: "warn"}.get(self.verdict, "off")

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "verdict": self.verdict.value,
            "text": self.text,
            "code": self.code,
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """`status` and `code` are what the client gets; None and "" where that is not known here."""

    steps: Sequence[Step]
    status: int | None
    code: str
    message: str
    headers: Sequence[tuple[str, str]] = ()
    cause: str = ""  # the code of the step that refuses: more than the client is told
    backend: str = ""  # the one that would be chosen
    notes: Sequence[str] = ()  # what the reader must know about all this

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "headers": dict(self.headers),
            "cause": self.cause,
            "backend": self.backend,
            "steps": [step.as_json() for step in self.steps],
            "notes": list(self.notes),
        }
