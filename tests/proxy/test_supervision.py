"""L5: an exception in one round of a task is logged, and the next round comes."""

import asyncio
import dataclasses
import logging
import os
import shutil
import time
from types import SimpleNamespace

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError

from proxy.errors import Interruption
from proxy.fake_ollama import FakeOllama
from proxy.fleet.probes import Watch
from proxy.fleet.state import BackendState
from proxy.ledger import Ledger, ledger
from proxy.ledger.spool import Spool
from proxy.runtime import Runtime
from proxy.snapshot import Backend, IPRuleRow, Policy, Tables
from proxy.threads import WorkThread
from proxy.upstream.wire import Endpoint, Pool
from tests.proxy.spooled import opened_row

PATIENCE = 10


async def until(predicate):
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def configuration(tmp_path):
    return dataclasses.replace(django_settings.GATEWAY, spool_dir=tmp_path / "spool", spool_max_bytes=1 << 20)


class Database:
    """A store that fails in a given way until it is mended."""

    def __init__(self, problem):
        self.problem = problem
        self.rows = {}
        self.tried = self.closed = 0

    def add(self, rows):
        self.tried += 1
        if self.problem is not None:
            raise self.problem
        self.rows.update((row[0], row) for row in rows)

    def close(self):
        self.closed += 1


@pytest.fixture
async def made(configuration, monkeypatch):
    """A started ledger whose database fails."""
    monkeypatch.setattr(ledger, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(ledger, "ADOPT_SECONDS", 0.05)
    made = Ledger(configuration)
    made._store = Database(OperationalError("gone"))
    made.start()
    yield made
    made._store.problem = None
    await made.close(5)


def one_call(made):
    made.spool.open(row := opened_row(), None)
    made.spool.close(row)
    return row[0]


@pytest.mark.parametrize("problem", [OperationalError("gone"), RuntimeError("a bug"), OSError(28, "full")])
async def test_l5_the_writer_of_records_goes_on_whatever_the_store_raises(made, problem, caplog):
    made._store.problem = problem
    ids = {one_call(made) for _ in range(3)}
    await until(lambda: made._store.tried >= 3 and made._store.closed >= 2)
    assert made.backlog == 3
    made._store.problem = None
    await until(lambda: made._store.rows.keys() == ids)
    assert made.backlog == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_l5_the_spool_is_kept_though_a_round_fails(made, monkeypatch, caplog):
    calls = []

    def failing():
        calls.append(1)
        raise (RuntimeError("a bug") if len(calls) == 1 else OSError(5, "input/output error"))

    monkeypatch.setattr(made.spool, "dirty_files", failing)
    await until(lambda: len(calls) >= 3)
    assert "could not be kept" in caplog.text
    assert "could not be synced" in caplog.text


async def test_l5_one_unreadable_spool_keeps_no_other_from_being_adopted(made, configuration, caplog):
    made._store.problem = None
    left = Spool(configuration.spool_dir, 1 << 20)
    left.open(row := opened_row(), None)
    odd = configuration.spool_dir / "00-odd"
    shutil.copytree(left.directory, odd)
    next(odd.glob("0*.log")).write_bytes(b'o{"no": "row"}\n')
    os.close(left._lock)  # as the kernel does when its process ends
    await until(lambda: row[0] in made._store.rows)
    assert made._store.rows[row[0]][0] == row[0]
    await until(lambda: not left.directory.exists())
    assert odd.exists()
    assert "left for you to look at" in caplog.text
    for segment in (*left.segments, *left._notes):
        os.close(segment.fd)


async def test_u1_closing_in_the_middle_of_a_batch_loses_no_row(configuration):
    """Two that count the same rows as stored would release rows that are not."""

    class Slow(Database):
        def add(self, rows):
            time.sleep(0.1)
            super().add(rows)

    made = Ledger(dataclasses.replace(configuration, spool_max_bytes=64 << 20))
    made._store = Slow(None)
    made.start()
    ids = {one_call(made) for _ in range(1200)}
    await until(lambda: made._store.rows)
    ids |= {one_call(made) for _ in range(1200)}
    await made.close(20)
    await until(lambda: made._store.closed)
    assert made._store.rows.keys() == ids
    assert not list(configuration.spool_dir.iterdir())


@pytest.fixture
async def runtime(configuration):
    """Its sweeper alone."""
    made = Runtime(configuration)
    made._ready = asyncio.Event()
    made._nothing_runs = asyncio.Event()
    made.ledger = Ledger(configuration)
    made.fleet = SimpleNamespace(
        sweep=lambda: None, line=SimpleNamespace(waiting=0), apply=lambda backends: None, close=lambda: None
    )
    made._sweeper = asyncio.create_task(made._sweep_for_ever())
    yield made
    made._sweeper.cancel()
    await made.ledger.close(1)


class RunningCall:
    """As much of a call as the sweeper looks at."""

    def __init__(self, deadline):
        self.key = None
        self.dispatched_at = 0.0
        self.deadline, self.deadline_reason, self.total_deadline = deadline, Interruption.GAP, 0.0
        self.interrupted = asyncio.Event()

    def interrupt(self, reason):
        self.interrupted.set()


async def test_l5_the_sweeper_goes_on_after_an_exception(runtime, caplog):
    broken = RunningCall(deadline="no number")
    runtime.calls.add(broken)
    await until(lambda: "The sweeper failed" in caplog.text)
    runtime.calls.discard(broken)
    late = RunningCall(deadline=time.monotonic() - 1)
    runtime.calls.add(late)
    async with asyncio.timeout(PATIENCE):
        await late.interrupted.wait()
    runtime.calls.clear()


async def test_l5_rules_that_cannot_be_put_in_force_leave_the_old_ones(runtime, caplog):
    runtime._apply(Tables(policies=(Policy("a*"),)))
    old = runtime.snapshot
    runtime._apply(Tables(ip_rules=(IPRuleRow("no network", "deny"),)))
    assert runtime.snapshot is old
    assert "could not be put in force" in caplog.text
    runtime._apply(Tables())
    assert runtime.snapshot is not old


async def test_l5_a_backend_goes_on_being_probed_whatever_a_round_or_its_sequel_raises(caplog):
    rounds = []

    def sequel():
        rounds.append(state.failed_probes)
        if len(rounds) < 3:
            raise RuntimeError("a bug")

    async with FakeOllama(models=["llama3.2"]) as fake:
        backend = Backend(1, "one", fake.url, True, 1, None, "wire")
        state = BackendState(backend, Pool(Endpoint((), fake.port, None, "127.0.0.1", 1.0)))
        pool, state.pool = state.pool, None  # a bug in the round itself
        watch = Watch(state, None, 0.01, sequel)
        await until(lambda: len(rounds) >= 3)
        assert "failed in a way it should not" in caplog.text
        assert "What follows a probe of one failed" in caplog.text
        assert not state.is_up
        state.pool = pool
        await until(lambda: state.is_up and state.has("llama3.2:latest"))
        watch.stop()
        await asyncio.wait([watch._task])


async def test_l5_a_thread_outlives_what_its_work_raises():
    thread = WorkThread("test")

    def fail(exc):
        raise exc

    for exc in (ValueError("a bug"), SystemExit(1), KeyboardInterrupt()):
        with pytest.raises(type(exc)):
            await thread.run(fail, exc)
    assert await thread.run(lambda: 5) == 5
    thread.stop()
