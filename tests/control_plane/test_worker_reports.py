"""What workers tell the pages, on both databases: counted once, bounded, and gone when it is old."""

import asyncio
import itertools
import time
from datetime import timedelta

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError
from django.utils import timezone

from gateway_site import dashboard
from proxy import model_jobs, worker_reports
from proxy.dependants import dependants
from proxy.fake_ollama import FakeOllama
from proxy.model_jobs import Progress, Work
from proxy.models import Backend, BackendReport, ConfigRevision, ModelAlias, ModelJob, RefusalCount, WorkerReport
from proxy.snapshot import Backend as BackendRule
from proxy.worker_reports import MOST_SUBJECTS, Status, WorkerReports
from tests.factories import make_admin, make_backend, make_key

STATUS = Status({"tenants_apikey": 1_790_000_000_000, "tenants_tenant": 5}, calls=2, waiting=1)


def told(reports, status=STATUS):
    reports._write(status, *reports._taken())


def counts():
    return {(row.code, row.key_prefix): row.count for row in RefusalCount.objects.all()}


@pytest.mark.usefixtures("database")
def test_refusals_of_all_workers_are_added_up():
    one, other = WorkerReports(), WorkerReports()
    now = time.time()
    for reports, times in ((one, 3), (other, 2)):
        for _ in range(times):
            reports.refused(now, "key_revoked", "abc")
        reports.refused(now, "missing_key", "")
        told(reports)
    told(one)  # nothing new: counted once
    assert counts() == {("key_revoked", "abc"): 5, ("missing_key", ""): 2}
    assert {row.minute.timestamp() for row in RefusalCount.objects.all()} == {int(now) // 60 * 60}


@pytest.mark.usefixtures("database")
def test_a_worker_is_seen_while_it_tells_and_disappears():
    reports = WorkerReports()
    reports.listening([("127.0.0.1", 8080), ("::1", 8080)])
    told(reports)
    told(reports)
    (row,) = WorkerReport.objects.running()
    assert (row.revision, row.calls, row.waiting) == (1_790_000_000_005, 2, 1)
    assert row.listens == ["127.0.0.1:8080", "[::1]:8080"]
    WorkerReport.objects.update(seen_at=timezone.now() - timedelta(seconds=20))
    assert not WorkerReport.objects.running().exists()
    other = WorkerReports()
    other._host = "another"
    told(other)
    assert [row.host for row in WorkerReport.objects.all()] == ["another"]
    other._leave({}, {})
    assert not WorkerReport.objects.exists()


@pytest.mark.usefixtures("database")
def test_what_is_old_or_too_much_is_pruned(monkeypatch):
    monkeypatch.setattr(worker_reports, "MOST_ROWS", 3)
    now = timezone.now().replace(second=0, microsecond=0)
    for minutes in (0, 1, 2, 3, 4):
        RefusalCount.objects.create(minute=now - timedelta(minutes=minutes), code="line_full", count=1)
    RefusalCount.objects.create(minute=now - timedelta(days=8), code="line_full", count=1)
    backend = make_backend()
    job = ModelJob.objects.create(backend=backend, model="a", action="pull")
    ModelJob.objects.create(backend=backend, model="b", action="pull")
    ModelJob.objects.filter(pk=job.pk).update(seen_at=now - timedelta(minutes=5))
    told(WorkerReports())
    assert sorted(row.minute for row in RefusalCount.objects.all()) == [
        now - timedelta(minutes=minutes) for minutes in (2, 1, 0)
    ]
    assert {job.model: job.state for job in ModelJob.objects.all()} == {"a": "failed", "b": "running"}


@pytest.mark.usefixtures("database")
def test_what_was_told_is_not_told_again_because_old_rows_could_not_be_deleted(monkeypatch):
    def fail(self):
        raise DatabaseError("locked")

    monkeypatch.setattr(WorkerReports, "_write_off", fail)
    monkeypatch.setattr(worker_reports, "PRUNE_SECONDS", 0.0)
    reports = WorkerReports()
    reports.refused(time.time(), "line_full", "")
    told(reports)  # raises nothing: else its caller would put the counts back
    assert counts() == {("line_full", ""): 1}


def test_what_is_remembered_between_two_writes_is_bounded():
    reports = WorkerReports()
    for number in range(3 * MOST_SUBJECTS):
        reports.refused(1_790_000_000, "unknown_key", f"k{number}")
    taken, _ = reports._taken()
    assert len(taken) == MOST_SUBJECTS + 1
    assert sum(taken.values()) == 3 * MOST_SUBJECTS
    reports._put_back(taken)
    assert sum(reports._taken()[0].values()) == 3 * MOST_SUBJECTS


@pytest.mark.usefixtures("database")
def test_the_dashboard_is_read_on_both_databases():
    user, key = make_admin(), make_key().row
    BackendReport.objects.create(
        backend=make_backend("gpu"), state="up", updated_at=timezone.now(),
        warm=[{"name": "qwen3:8b", "context": 1, "size": 1, "vram": 5, "expires_at": ""}],
    )  # fmt: skip
    reports = WorkerReports()
    reports.refused(time.time(), "key_revoked", key.prefix)
    told(reports, Status(dict(ConfigRevision.objects.values_list("table", "revision")), 0, 0))
    now = dashboard.read(user)
    assert [(view.backend.name, view.state, view.vram) for view in now.backends] == [("gpu", "up", 5)]
    assert [(row.code, row.key, row.count) for row in now.refusals] == [("key_revoked", key, 1)]
    assert (now.workers.current, len(now.workers.workers)) == (1, 1)


@pytest.mark.usefixtures("database")
def test_whoever_names_a_model_would_miss_it():
    gpu, other = make_backend("gpu"), make_backend("other")
    for backend in (gpu, other):
        BackendReport.objects.create(
            backend=backend, state="up", updated_at=timezone.now(), models=[{"name": "llama3.2:latest"}]
        )
    ModelAlias.objects.create(pattern="gpt-4o", model="llama3.2")
    for number in range(7):
        make_key(name=f"key {number}", models_allowed=["llama3.2"])
    make_key(name="a pattern", models_allowed=["llama3*"])
    make_key(name="another model", models_allowed=["llama3.2:1b"])
    found = dependants("llama3.2:latest", gpu)
    assert found[:2] == ["Calls for it go on: other has it, too.", "Alias: gpt-4o → llama3.2"]
    assert sum("Key that names it" in sentence for sentence in found) == 5
    assert found[-1] == "… and 2 more"
    Backend.objects.filter(name="other").update(enabled=False)
    assert dependants("llama3.2:latest", gpu)[0] == "No other backend has it: calls for it will get 404."


@pytest.mark.parametrize(
    ("lines", "completed", "total"),
    [
        ([{"status": "pulling manifest"}], 0, 0),
        ([{"status": "a", "digest": "d1", "total": 10}], 0, 10),
        ([{"digest": "d1", "total": 10, "completed": 4}, {"digest": "d2", "total": 90, "completed": 46}], 50, 100),
        ([{"digest": "d1", "total": 10, "completed": 99}], 10, 10),
        ([{"digest": "d1", "total": -1, "completed": 5}, {"digest": 7, "total": 5}], 0, 0),
        ([{"digest": "d1", "total": 1 << 70, "completed": 1 << 69}], 0, 0),
        ([{"digest": "d1", "total": "10", "completed": True}], 0, 0),
    ],
)
def test_progress_is_what_the_layers_add_up_to_whatever_a_backend_writes(lines, completed, total):
    progress = Progress()
    for line in lines:
        progress.read(line)
    assert (progress.completed, progress.total) == (completed, total)


def test_what_a_backend_says_is_one_short_line():
    progress = Progress()
    progress.read({"status": "pulling\n\x1b[31m" + "x" * 500})
    assert progress.status.startswith("pulling[31mx")
    assert len(progress.status) <= 200


class UnsteadyWork(Work):
    """A pull whose database fails as it is told to: `failures` are raised in turn, None lets one through."""

    def __init__(self, url, failures):
        super().__init__(7)
        self.url = url
        self.failures = iter(failures)
        self.notes, self.ends = [], []

    def _fail(self):
        failure = next(self.failures, None)
        if failure is not None:
            raise failure

    def _read(self):
        return "pull", "phi4", BackendRule(1, "one", self.url, True, 4, None, "wire"), None

    def _note(self):
        self._fail()
        self.notes.append(self.progress.status)
        return False

    def _finish(self, state, problem):
        self._fail()
        self.ends.append((state, problem))


AWAY = [OperationalError("database is locked"), InterfaceError("connection already closed")]


async def test_s1_a_pull_goes_on_while_the_database_does_not_answer(monkeypatch, caplog):
    monkeypatch.setattr(model_jobs, "NOTE_SECONDS", 0.01)
    async with FakeOllama(models=["phi4"]) as fake:
        fake.faults(path="/api/pull", hang_after_chunks=2)
        work = UnsteadyWork(fake.url, [None, *AWAY, None, *AWAY])
        running = asyncio.ensure_future(work.run())
        async with asyncio.timeout(30):
            while len(work.notes) < 3:  # one after each of its absences
                assert not running.done()
                await asyncio.sleep(0.005)
            work.failures = iter(AWAY)
            fake.release()
            await running
    assert work.ends == [("done", "")]
    assert caplog.text.count("waits for the database") == 3
    assert "could not be written" not in caplog.text


async def test_s1_a_pull_whose_end_cannot_be_written_says_so_and_ends(monkeypatch, caplog):
    monkeypatch.setattr(model_jobs, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(model_jobs, "FINISH_SECONDS", 0.05)
    async with FakeOllama(models=["phi4"]) as fake:
        work = UnsteadyWork(fake.url, itertools.repeat(AWAY[0]))
        async with asyncio.timeout(30):
            await work.run()
    assert not work.ends
    assert "That the job 7 is done could not be written down" in caplog.text
