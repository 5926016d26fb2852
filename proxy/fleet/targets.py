"""Which backend a call of model management goes to. Pure.

Inference goes where it is served best; what changes a backend must go where it was meant, so that nothing is guessed:
one backend of several has to be named, unless only one of them has the model.
"""

from collections.abc import Sequence

from proxy.errors import BadRequest, NotFound, Unavailable
from proxy.fleet.state import BackendState
from proxy.snapshot import Model

HEADER = "X-Gateway-Backend"


def choose(enabled: Sequence[BackendState], wanted: str, model: Model | None) -> BackendState:
    """`wanted`: the name the client gave, or ""; `model`: what the backend must have, if anything.

    Raises BadRequest, NotFound, Unavailable.
    """
    if not enabled:
        raise Unavailable("no_backend", "No backend is set up yet. An administrator can add one.", retry_after=30)
    if wanted:
        found = [state for state in enabled if state.name == wanted]
        if not found:
            raise BadRequest(f"There is no backend '{wanted[:100]}'. There are: {_names(enabled)}.", "unknown_backend")
        return _up(found[0])
    if len(enabled) == 1:
        return _up(enabled[0])
    if model is None:
        raise _which(enabled)
    holders = [state for state in enabled if state.has(model.served.canonical)]
    if len(holders) > 1:
        raise _which(holders)
    if not holders:
        raise NotFound("model_not_found", f"model '{model.asked.shown}' not found")
    return _up(holders[0])


def _up(state: BackendState) -> BackendState:
    if not state.is_up:
        raise Unavailable("no_backend", f"The backend '{state.name}' does not answer now. Try again.", retry_after=5)
    return state


def _which(states: Sequence[BackendState]) -> BadRequest:
    message = f"Say which backend is meant, with the header {HEADER}. It can be one of: {_names(states)}."
    return BadRequest(message, "backend_needed")


def _names(states: Sequence[BackendState]) -> str:
    return ", ".join(state.name for state in states)
