"""What a record says of its routing (UsageRecord.routing), and in words. Written by proxy/ledger/rows.py. Pure."""

import json
from dataclasses import dataclass
from typing import Any

# What a backend did that a call was sent on after → in words.
FAILURES = {
    "unreachable": "could not be reached",
    "lacks_model": "did not have the model any more",
    "lacks_route": "does not know this kind of call",
    "busy": "was busy",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """A limit that the call was counted against. `total`: used and held by all when it was admitted, with this call;
    `amount`: what the limit was then. In the unit of its metric."""

    limit_id: int
    total: int
    amount: int


@dataclass(frozen=True, slots=True)
class Routing:
    """`warm`, `busy` and `of`, of the backend when it was chosen: whether the model was warm there, how many calls it
    ran, of how many backends that could serve the call it was one. None where nothing had to be chosen."""

    warm: bool | None = None
    busy: int = 0
    of: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    limits: tuple[Counted, ...] = ()

    @property
    def why(self) -> str:
        """Why this backend; empty where it is not known."""
        if self.warm is None:
            return ""
        load = f"{self.busy} {'call' if self.busy == 1 else 'calls'} running" if self.busy else "nothing running"
        state = f"the model {'warm' if self.warm else 'cold'}, {load}"
        if self.of <= 1:
            return f"It was the only backend in rotation that could serve the call ({state})."
        rule = "warm ones first, then the fewest calls running"
        return f"It stood best of the {self.of} backends that could serve the call: {state} ({rule})."


def read(written: str) -> Routing:
    """Of what is empty, as on records of older versions, nothing is known."""
    said: dict[str, Any] = json.loads(written) if written else {}
    return Routing(
        said.get("warm"),
        said.get("busy", 0),
        said.get("of", 0),
        tuple((backend, failure) for backend, failure in said.get("failed", ())),
        tuple(Counted(*limit) for limit in said.get("limits", ())),
    )


@dataclass(frozen=True, slots=True)
class Attempt:
    backend: str
    ended: str


def attempts(routing: Routing, backend: str, ended: str) -> list[Attempt]:
    """Which backends were tried, and what ended each. `backend`, `ended`: of the last."""
    found = [Attempt(name, FAILURES.get(failure, failure)) for name, failure in routing.failed]
    return [*found, Attempt(backend, ended)] if backend else found
