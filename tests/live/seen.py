"""What a fake saw of calls. The gateway's probes come all the time and are none."""

from collections.abc import Iterator
from contextlib import contextmanager

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.calls import SeenCall

PROBES = {("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps")}


def calls(fake: FakeOllama, since: int = 0) -> list[SeenCall]:
    return [call for call in fake.calls if call.index >= since and (call.method, call.target) not in PROBES]


@contextmanager
def new_calls(fake: FakeOllama) -> Iterator[list[SeenCall]]:
    """A list that holds, when the block has ended, the calls that came during it."""
    since = fake.log.totals.calls
    found: list[SeenCall] = []
    yield found
    found += calls(fake, since)


@contextmanager
def no_calls(fake: FakeOllama) -> Iterator[None]:
    with new_calls(fake) as seen:
        yield
    assert not seen, [(call.method, call.target, call.body[:200]) for call in seen]
