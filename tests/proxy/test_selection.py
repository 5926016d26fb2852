"""Which of several backends: pure scores over what is known of them."""

import pytest

from proxy.fleet import selection
from proxy.fleet.state import BackendState, WarmModel
from proxy.snapshot import Backend
from proxy.upstream.wire import Endpoint, Pool

NOW = 1000.0


def make_state(number, *, warm=(), in_flight=0, others=0, slots=4, open_for=0.0, busy_for=0.0):
    backend = Backend(number, f"b{number}", f"http://10.0.0.{number}:11434", True, slots, None, "wire")
    state = BackendState(backend, Pool(Endpoint((), 1, None, None, 1)))
    state.warm = {name: WarmModel(4096, {}) for name in warm}
    for model, count in (("m", in_flight), ("other", others)):
        for _ in range(count):
            state.take(model)
    if open_for:
        state.breaker.failures, state.breaker.open_until = 5, NOW + open_for
    state.busy_until = NOW + busy_for if busy_for else 0.0
    return state


def chosen(*states, avoid=()):
    state = selection.choose(states, "m", NOW, avoid)
    return state.backend.id if state else None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([{}, {"warm": ["m"]}], 2),
        ([{}, {"warm": ["m"], "in_flight": 3}], 2),  # warm and busy before cold and idle
        ([{}, {"warm": ["m"], "in_flight": 4}], 1),  # but not where no slot is free
        ([{"in_flight": 2}, {"in_flight": 1}], 2),
        ([{"others": 2}, {"in_flight": 1}], 2),  # in flight counts whatever the model
        ([{}, {}], 1),
        ([{"in_flight": 4}, {"in_flight": 4}], None),
        ([{"busy_for": 1}, {"in_flight": 3}], 2),  # busy: no cold work there
        ([{"busy_for": 1, "warm": ["m"]}, {}], 1),  # warm work goes on
        ([{"busy_for": 1}], None),
        ([{"slots": 1, "in_flight": 1}, {"slots": 9, "in_flight": 8}], 2),
        ([], None),
    ],
)
def test_warm_first_then_the_fewest_in_flight_within_the_slots(states, expected):
    assert chosen(*(make_state(number, **fields) for number, fields in enumerate(states, 1))) == expected


def test_a_backend_that_failed_this_call_is_not_tried_again():
    states = [make_state(1, warm=["m"]), make_state(2)]
    assert chosen(*states, avoid=["b1"]) == 2
    assert chosen(*states, avoid=["b1", "b2"]) is None


@pytest.mark.parametrize(
    ("open_for", "in_rotation"),
    [
        ([5], [1]),  # never the last one
        ([0, 5], [1]),
        ([9, 5], [2]),  # the one that would be let back first
        ([0, 0, 5], [1, 2]),
        ([0, 5, 9], [1, 2]),  # half of the holders, rounded up
        ([7, 5, 9], [1, 2]),
        ([0, 0, 5, 9], [1, 2]),
        ([], []),
    ],
)
def test_b12_half_of_the_holders_always_stay_in_rotation(open_for, in_rotation):
    states = [make_state(number, open_for=seconds) for number, seconds in enumerate(open_for, 1)]
    assert sorted(state.backend.id for state in selection.in_rotation(states, NOW)) == in_rotation
    later = selection.in_rotation(states, NOW + 10)
    assert len(later) == len(states), "all are back after their pauses"
