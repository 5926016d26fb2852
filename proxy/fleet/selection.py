"""Which of several backends. Pure scores over what is known."""

from collections.abc import Container, Iterable, Sequence

from proxy.fleet.state import BackendState


def in_rotation(holders: Sequence[BackendState], now: float) -> list[BackendState]:
    """Those that may be sent calls: the breaker takes out at most half of them, and never the last one."""
    if not any(state.breaker.open_until for state in holders):
        return list(holders)
    closed = [state for state in holders if not state.breaker.is_open(now)]
    needed = -(-len(holders) // 2)
    if len(closed) >= needed:
        return closed
    # Those that will be let back first stay in.
    opened = sorted(
        (state for state in holders if state.breaker.is_open(now)), key=lambda state: state.breaker.open_until
    )
    return closed + opened[: needed - len(closed)]


def choose(holders: Iterable[BackendState], model: str, now: float, avoid: Container[str] = ()) -> BackendState | None:
    """Warm first, then the fewest calls in flight; None where no slot is free. `avoid`: names already tried."""
    best: BackendState | None = None
    best_rank: tuple[bool, int, int] | None = None
    for state in holders:
        cold = model not in state.warm
        if state.name in avoid or not state.has_slot(model) or (cold and state.busy_until > now):
            continue
        rank = (cold, state.total_in_flight, state.backend.id)
        if best_rank is None or rank < best_rank:
            best, best_rank = state, rank
    return best
