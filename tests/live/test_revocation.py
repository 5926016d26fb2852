"""A7, S7: a withdrawn key is refused by every worker and its streams are cut, whatever becomes of Redis.

The same, often: python benchmarks/revocation.py --trials 100
"""

import asyncio

import pytest

from tests.live.crashes import FakeProcess
from tests.live.revocations import STATES, Revocations, redis_is
from tests.redis_server import RedisServer

TRIALS, WORKERS, STREAMS = 3, 4, 6
# It is 1 s; the rest is for a busy machine.
CEILING = 10


@pytest.fixture
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def fake_process():
    process = FakeProcess()
    yield process
    process.close()


async def test_a7_a_withdrawn_key_is_refused_and_cut_on_all_workers_with_redis_up_killed_and_stopped(
    make_gateway, fake_process, redis_server, capsys
):
    env = {"REDIS_URL": redis_server.url}
    gateway = make_gateway(workers=WORKERS, **env)
    gateway.make_backend(fake_process.url, slots=256)
    await asyncio.to_thread(gateway.start)
    revocations = Revocations(gateway, fake_process, STREAMS)
    try:
        for state in STATES:
            with redis_is(redis_server, state):
                trials = [await revocations.trial() for _ in range(TRIALS)]
                wrong = await revocations.check_records(trials)
            refused = max(seconds for trial in trials for seconds in trial.refused)
            cut = max(seconds for trial in trials for seconds in trial.cut)
            with capsys.disabled():
                print(f"\n  Redis {state}: refused after at most {refused:.2f} s, cut after {cut:.2f} s", end=" ")
            assert [fault for trial in trials for fault in trial.faults] == []
            assert wrong == []
            assert max(trial.workers for trial in trials) == WORKERS
            assert max(refused, cut) < CEILING
    finally:
        await revocations.close()
    assert "Traceback" not in gateway.log()
