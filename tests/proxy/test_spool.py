"""U1, S5: what the spool holds survives its process, stays within its bound, and is there again when the disk is."""

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.ledger import spool
from proxy.ledger.ledger import left_behind
from proxy.ledger.rows import AT, ROUTING_BYTES
from proxy.ledger.spool import Spool, SpoolFull
from tests.proxy.spooled import make_row, opened_row, value

MIB = 1 << 20


@pytest.fixture
def root(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def made(root):
    """A spool in use; it ends with the test."""
    spool_ = Spool(root, 16 * MIB)
    spool_.open(row := opened_row(), None)
    spool_.close(row)
    store_all(spool_)
    yield spool_
    spool_.shut()


def store_all(spool_):
    """What the ledger's task does, with a database that takes everything. Returns the ids."""
    ids = []
    while (taken := spool_.take(100)) is not None:
        segment, rows = taken
        ids += [row[0] for row in rows or spool.closed_rows(segment.path)]
        spool_.stored(segment, rows)
    spool_.release()
    return ids


def on_disk(root):
    return sum(path.stat().st_size for path in root.rglob("*.log"))


@contextmanager
def full_disk():
    """No file of this process grows beyond 4 KiB: what a write gets then is EFBIG, as it gets ENOSPC elsewhere."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill(spool_):
    """Calls until one is refused; returns those that run."""
    running = []
    while True:
        row = opened_row()
        try:
            spool_.open(row, None)
        except SpoolFull:
            return running
        running.append(row)
        assert len(running) < 100_000


def test_u1_each_entry_is_in_the_file_when_the_call_returns(root, made):
    row = opened_row()
    made.open(row, None)
    assert [left[0] for left in left_behind(made.directory)] == [row[0]]
    made.close(row)
    assert [left[0] for left in left_behind(made.directory)] == [row[0]]
    assert on_disk(root) == made.size


def test_u1_a_call_left_open_becomes_interrupted_with_its_last_note(made):
    made.open(row := opened_row(), None)
    made.open(silent := opened_row(), None)
    for second in (1, 2, 3):
        made.progress([[row[0], value(row, "started_at") + second, second * 10, second * 100, "two"]])
    left = {entry[0]: entry for entry in left_behind(made.directory)}
    noted = left[row[0]]
    assert [value(noted, name) for name in ("outcome", "completion_tokens", "bytes_out", "backend", "total_us")] == [
        "interrupted", 30, 300, "two", 3_000_000,
    ]  # fmt: skip
    assert value(left[silent[0]], "completion_tokens") == 0


def test_u1_a_torn_last_line_costs_only_itself(made):
    ended, running = opened_row(), opened_row()
    for row in (ended, running):
        made.open(row, None)
    made.close([*ended[: AT["outcome"]], "ok", *ended[AT["outcome"] + 1 :]])
    made.close([*running[: AT["outcome"]], "ok", *running[AT["outcome"] + 1 :]])
    path = made.segments[-1].path
    os.truncate(path, path.stat().st_size - 9)
    outcomes = {row[0]: value(row, "outcome") for row in left_behind(made.directory)}
    assert outcomes == {ended[0]: "ok", running[0]: "interrupted"}


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(min_value=0, max_value=6000), seed=st.integers(min_value=0, max_value=2**20))
def test_u1_cut_anywhere_no_row_is_doubled_or_mangled(tmp_path_factory, cut, seed):
    made = Spool(tmp_path_factory.mktemp("cut"), 16 * MIB)
    rows = [opened_row() for _ in range(4)]
    for number, row in enumerate(rows):
        made.open(row, None)
        if seed >> number & 1:
            made.close(row)
    path = made.segments[0].path
    os.truncate(path, min(cut, path.stat().st_size))
    left = [row[0] for row in left_behind(made.directory)]
    assert len(left) == len(set(left))
    assert set(left) <= {row[0] for row in rows}
    made.shut()


def test_u1_segments_go_when_their_rows_are_stored(root):
    made = Spool(root, 4 * MIB)
    for _ in range(2000):
        made.open(row := opened_row(), None)
        made.close(row)
    assert len(made.segments) > 1
    assert len(store_all(made)) == 2000
    assert (made.size, on_disk(root), len(made.segments)) == (0, 0, 1)
    made.shut()
    assert list(root.iterdir()) == []


def test_u1_a_call_of_hours_does_not_pin_the_segments_beside_it(root):
    """20,000 calls pass while ten run on: 30 MB of entries through a spool of 1 MiB."""
    made = Spool(root, MIB)
    running = [opened_row() for _ in range(10)]
    for row in running:
        made.open(row, None)
    for number in range(20_000):
        made.open(row := opened_row(), None)
        made.close(row)
        if number % 100 == 99:
            store_all(made)
    assert made.running == 10
    assert on_disk(root) == made.size < MIB / 2
    left = list(left_behind(made.directory))  # what is stored and not yet released is stored again without effect
    assert {row[0] for row in running} <= {row[0] for row in left}
    for row in running:
        made.close(row)
    assert set(store_all(made)) == {row[0] for row in running}
    assert made.size == 0
    made.shut()


def test_s5_notes_of_progress_do_not_grow(root):
    made = Spool(root, MIB)
    running = [opened_row() for _ in range(20)]
    for row in running:
        made.open(row, None)
    sizes = []
    for second in range(3600):
        made.progress([row[0], value(row, "started_at") + second, second, second, "one"] for row in running)
        sizes.append(made.size)
    assert max(sizes) < MIB / 4
    assert made.size == on_disk(root)
    assert {value(row, "completion_tokens") for row in left_behind(made.directory)} == {3599}
    made.shut()


def test_s5_the_bound_holds_and_keeps_room_for_the_closes(root):
    made = Spool(root, MIB)
    admitted = []
    # Closes are shorter than the room kept for them, so there is room again, until there is none even then.
    while running := fill(made):
        assert not made.is_writable
        for row in running:
            # As long as a close gets: everything that was empty is full.
            row[AT["backend"]], row[AT["error"]], row[AT["model_digest"]] = "é" * 100, "e" * 64, "d" * 64
            row[AT["routing"]] = '"' * ROUTING_BYTES
            for position in range(AT["queue_us"], AT["gateway_us"] + 1):
                row[position] = 10**12
            made.close(row)
        admitted += running
    assert len(admitted) > 300
    assert (made.problem, made.unwritten) == ("", {})
    assert MIB / 2 < on_disk(root) <= MIB
    assert set(store_all(made)) == {row[0] for row in admitted}
    made.open(opened_row(), None)
    made.shut()


def test_s5_a_full_disk_refuses_calls_keeps_closes_and_mends_itself(root, made):
    with full_disk():
        running = fill(made)
        assert running
        assert made.problem
        assert not made.is_writable
        for row in running:
            made.close(row)
        assert made.unwritten
        made.mend()
        assert made.problem
        assert {row[0] for row in left_behind(made.directory)} == {row[0] for row in running}
    made.mend()
    assert (made.problem, made.unwritten, made.is_writable) == ("", {}, True)
    outcomes = [row[0] for row in left_behind(made.directory)]
    assert sorted(outcomes) == sorted(row[0] for row in running)
    assert sorted(store_all(made)) == sorted(row[0] for row in running)
    assert on_disk(root) == made.size == 0


def test_s5_a_disk_full_of_our_own_entries_empties_when_the_database_has_them(made):
    with full_disk():
        running = fill(made)
        for row in running:
            made.close(row)
        assert made.unwritten
        assert sorted(store_all(made)) == sorted(row[0] for row in running)
        made.mend()
        assert (made.problem, made.unwritten) == ("", {})
        made.open(opened_row(), None)


def test_s5_a_directory_that_cannot_be_made_is_made_later(tmp_path):
    (tmp_path / "spool").touch()  # a file where the directory should be
    made = Spool(tmp_path / "spool", MIB)
    with pytest.raises(SpoolFull):
        made.open(opened_row(), None)
    made.mend()
    assert not made.is_writable
    (tmp_path / "spool").unlink()
    made.mend()
    assert made.is_writable
    made.open(opened_row(), None)
    made.shut()


def test_s1_beyond_the_rows_in_memory_they_are_read_from_the_file(root, monkeypatch):
    monkeypatch.setattr(spool, "MAX_ROWS_IN_MEMORY", 50)
    made = Spool(root, 64 * MIB)
    ids, stored = [], []
    for _ in range(300):
        made.open(row := opened_row(), None)
        made.close(row)
        ids.append(row[0])
    assert sum(len(segment.rows) for segment in made.segments) == 50
    while (taken := made.take(20)) is not None:
        segment, rows = taken
        read = rows or list(spool.closed_rows(segment.path))
        # Calls go on ending while the database works.
        if len(ids) < 400:
            made.open(late := opened_row(), None)
            made.close(late)
            ids.append(late[0])
        stored += [row[0] for row in read]
        made.stored(segment, rows)
    assert set(stored) == set(ids)
    assert made.size == 0
    made.shut()


CHILD = """
import django
django.setup()  # the ledger's package reads the models
import sys
from pathlib import Path
from proxy.ledger.spool import Spool
from tests.proxy.spooled import opened_row
made = Spool(Path(sys.argv[1]), 1 << 24)
for number in range(20):
    made.open(row := opened_row(), None)
    if number % 2:
        made.close(row)
print("ready", flush=True)
sys.stdin.read()
"""


def test_u1_orphans_are_taken_once_by_one_of_many(root):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert child.stdout.readline() == b"ready\n"
    assert list(spool.orphans(root)) == []  # its owner lives
    child.kill()
    child.wait()
    child.stdin.close(), child.stdout.close()
    begin, taken = threading.Barrier(8), []

    def adopt():
        begin.wait()
        for directory, descriptor in spool.orphans(root):
            taken.append((directory, descriptor))

    threads = [threading.Thread(target=adopt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(directory, descriptor)] = taken
    assert len(list(left_behind(directory))) == 20
    os.close(descriptor)


def test_u1_an_entry_is_one_line_of_json(made):
    made.open(row := opened_row(user_agent="line\nbreak \x00 é \u2028"), [1, 2, 3, 4, 5, 6])
    [line] = made.segments[-1].path.read_bytes().splitlines()
    assert line[:1] == b"o"
    assert orjson.loads(line[1:]) == [row, [1, 2, 3, 4, 5, 6]]


def test_l5_a_call_that_ends_after_the_end_writes_into_no_file(root):
    made = Spool(root, MIB)
    made.open(row := make_row(), None)
    made.shut()
    made.close(row)
    assert row[0] in made.unwritten
