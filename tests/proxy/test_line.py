"""The waiting line in front of the slots."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import Unavailable
from proxy.queue import LOOKAHEAD, Line

MODELS = ("m", "n")


class Slots:
    """Counts what is taken, as BackendState does, and complains when more is given back than was taken."""

    def __init__(self, free):
        self.free = free
        self.taken = 0

    def place(self):
        if not self.free:
            return None
        self.free -= 1
        self.taken += 1
        return self

    def give_back(self, _=None):
        assert self.taken > 0
        self.taken -= 1
        self.free += 1


class Arrivals:
    """Calls that wait in a line for one kind of slot per model: in which order they were placed, and went on."""

    def __init__(self, line, slots):
        self.line = line
        self.slots = slots
        self.placed = []
        self.served = []
        self.held = Counter()
        self.waiting = {}

    def arrive(self, name, model="m", slots=None):
        wanted = slots or self.slots[model]

        def place():
            if wanted.place() is None:
                return None
            self.placed.append(name)
            return wanted

        async def wait():
            await self.line.wait(model, place, wanted.give_back)
            self.served.append(name)
            self.held[model] += 1

        self.waiting[name] = asyncio.get_running_loop().create_task(wait())

    def cancel(self, name):
        self.waiting[name].cancel()

    def finish(self, model):
        self.held[model] -= 1
        self.slots[model].give_back()
        self.line.serve(model)

    async def settle(self):
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture
def calls():
    return Arrivals(Line(1000), {"m": Slots(0)})


async def test_m6_first_come_first_served(calls):
    for name in range(20):
        calls.arrive(name)
    await calls.settle()
    for _ in range(20):
        calls.slots["m"].free += 1
        calls.line.serve("m")
        await calls.settle()
    assert calls.served == list(range(20))
    assert calls.line.waiting == 0
    assert not calls.line.is_waited_for("m")


async def test_m6_a_waiter_that_leaves_frees_its_place_at_once(calls):
    calls.line.length = 2
    calls.arrive("a")
    calls.arrive("b")
    await calls.settle()
    with pytest.raises(Unavailable) as refused:
        await calls.line.wait("m", calls.slots["m"].place, calls.slots["m"].give_back)
    assert refused.value.code == "line_full"
    assert refused.value.retry_after >= 1
    calls.cancel("a")
    await calls.settle()
    assert calls.line.waiting == 1
    calls.arrive("c")
    await calls.settle()
    calls.slots["m"].free = 2
    calls.line.serve("m")
    await calls.settle()
    assert calls.served == ["b", "c"]


async def test_b10_placed_and_cancelled_in_the_same_turn_gives_the_slot_to_the_next(calls):
    calls.arrive("a")
    calls.arrive("b")
    await calls.settle()
    calls.slots["m"].free = 1
    calls.line.serve("m")  # a has the slot, but has not run yet
    calls.cancel("a")
    await calls.settle()
    assert calls.served == ["b"]
    assert (calls.slots["m"].free, calls.slots["m"].taken) == (0, 1)


async def test_one_that_cannot_be_placed_does_not_hold_up_those_behind_it(calls):
    full = Slots(0)
    for number in range(LOOKAHEAD - 1):
        calls.arrive(f"blocked {number}", slots=full)
    calls.arrive("a")
    calls.arrive("b")
    await calls.settle()
    calls.slots["m"].free = 2
    calls.line.serve("m")
    await calls.settle()
    assert calls.served == ["a", "b"]
    full.free = 3
    calls.line.serve("m")
    await calls.settle()
    assert calls.served == ["a", "b", "blocked 0", "blocked 1", "blocked 2"]


async def test_who_comes_to_a_line_of_those_who_cannot_be_placed_is_placed_at_once(calls):
    calls.arrive("blocked", slots=Slots(0))
    calls.slots["m"].free = 1
    calls.arrive("a")
    await calls.settle()
    assert calls.served == ["a"]


async def test_who_comes_before_the_one_just_placed_has_left_is_not_forgotten(calls):
    calls.arrive("a")
    await calls.settle()
    calls.slots["m"].free = 2
    calls.line.serve("m")
    calls.arrive("b")
    await calls.settle()
    assert calls.served == ["a", "b"]


async def test_when_the_one_in_front_leaves_those_behind_it_are_tried(calls):
    for number in range(LOOKAHEAD):
        calls.arrive(f"blocked {number}", slots=Slots(0))
    calls.arrive("a")
    await calls.settle()
    calls.slots["m"].free = 1
    calls.line.serve("m")
    await calls.settle()
    assert calls.served == []
    calls.cancel("blocked 0")
    await calls.settle()
    assert calls.served == ["a"]


def test_the_expected_wait_is_bounded():
    line = Line(10)
    assert line.expected_wait() == 5.0
    line.waiting = 10
    line._served.extend([0.0, 0.0])
    assert 1.0 <= line.expected_wait() <= 60.0


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(MODELS)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.tuples(st.just("finish"), st.sampled_from(MODELS)),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.integers(1, 3))
def test_m6_no_slot_leaks_and_nobody_overtakes_whatever_the_order_of_events(events, size):
    asyncio.run(replay(events, size))


async def replay(events, size):
    slots = {model: Slots(size) for model in MODELS}
    calls = Arrivals(Line(1000), slots)
    arrived = Counter()
    for what, which in events:
        if what == "arrive":
            calls.arrive((which, arrived[which]), which)
            arrived[which] += 1
        elif what == "cancel" and (names := [name for name, task in calls.waiting.items() if not task.done()]):
            calls.cancel(names[which % len(names)])
        elif what == "finish" and calls.held[which]:
            calls.finish(which)
        elif what == "turn":
            await asyncio.sleep(0)
    await calls.settle()
    for model in MODELS:
        # Of two placed in the same turn of the loop, the later may be the first to go on.
        order = [number for name, number in calls.placed if name == model]
        assert order == sorted(order)
        # Nobody waits beside a free slot.
        assert not (slots[model].free and calls.line.is_waited_for(model))
    for task in calls.waiting.values():
        task.cancel()
    await asyncio.gather(*calls.waiting.values(), return_exceptions=True)
    assert calls.line.waiting == 0
    for model in MODELS:
        assert not calls.line.is_waited_for(model)
        assert slots[model].free + slots[model].taken == size
        assert slots[model].taken == calls.held[model]
