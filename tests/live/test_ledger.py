"""U1-U3, U11, S3-S5: each admitted call has exactly one record, whatever happens to it, to us or to the disk."""

import asyncio
import json
import os
import resource
import subprocess
import time
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import psutil
import psycopg
import pytest

from tenants.models import ApiKeyLastUsed
from tests.live.crashes import FakeProcess, Verdict, kill_once
from tests.live.outages import locked
from tests.live.raw import RawClient
from usage.models import UsageBucket, UsageRecord
from usage.rollups import reconcile

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
MIB = 1 << 20


@pytest.fixture
def database_url(request):
    return request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi there"}], **fields}


def seen(fake, *paths):
    return [call for call in fake.calls if call.path in (paths or ("/api/chat",))]


async def started(make_gateway, fake, **options):
    gateway = make_gateway(**options)
    gateway.make_backend(fake.url, slots=1000)
    gateway.key_row, gateway.key = gateway.make_key()
    return await asyncio.to_thread(gateway.start)


# U1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "workers", "kills"),
    [("sqlite", 1, 3), pytest.param("postgresql", 2, 3, marks=pytest.mark.postgres)],
    indirect=["database_url"],
)
async def test_u1_kill_9_under_streams_leaves_one_record_for_each_call(
    make_gateway, database_url, workers, kills, capsys
):
    fake = FakeProcess()
    try:
        gateway = await started(make_gateway, fake, database_url=database_url, workers=workers)
        verdict = Verdict()
        for number in range(kills):
            verdict.add(await kill_once(gateway, fake, gateway.key, streams=50, seed=number))
    finally:
        fake.close()
    with capsys.disabled():
        print(f"\n  {verdict.seen_by_backend} calls, {verdict.interrupted} interrupted", end=" ")
    assert verdict.is_clean, verdict
    assert verdict.interrupted > 0, "no call was running at the kill: it proves nothing"
    assert verdict.refused == 0


# U2


async def test_u2_the_same_request_id_a_hundred_times_is_a_hundred_records(gateway, fake):
    ids = set()
    async with gateway.client(gateway.key) as client:
        for given in ["mine"] * 100 + ["", "with blanks", "x" * 200, "späße", "00000000000000000000000000000000"]:
            answer = await client.post(
                "/api/chat",
                json=chat(stream=False, options={"num_predict": 1}),
                headers={"x-request-id": given.encode("latin-1")},
            )
            assert answer.status_code == 200
            assert answer.headers["x-request-id"] != given
            ids.add(answer.headers["x-request-id"])
    assert len(ids) == 105
    assert {call.header("x-request-id") for call in seen(fake)} == ids
    records = await gateway.wait_for_records(105)
    assert {record.pk.hex for record in records} == ids
    assert sorted(record.client_request_id for record in records)[-100:] == ["mine"] * 100


# U3, Ollama's own dialect

MODES = {
    "chat, streamed": ("/api/chat", chat()),
    "chat": ("/api/chat", chat(stream=False)),
    "generate, streamed": ("/api/generate", {"model": "llama3.2", "prompt": "hi there"}),
    "generate": ("/api/generate", {"model": "llama3.2", "prompt": "hi there", "stream": False}),
}
# fault → (outcome, tokens of a stream, whether they are estimates)
ENDINGS = {
    "whole": ({}, "ok", 9, False),
    "no counts": ({"no_usage": True}, "ok", 9, True),
    "one count": ({"usage_drop": ["eval_count"]}, "ok", 9, True),
    "negative": ({"usage": {"eval_count": -5}}, "ok", 9, True),
    "absurd": ({"usage": {"eval_count": 10**15}}, "ok", 9, True),
    "a text": ({"usage": {"eval_count": "many"}}, "ok", 9, True),
    "two ends": ({"repeat_final": 2}, "ok", 9, False),
    "breaks off": ({"eof_after_chunks": 4}, "failed", 4, True),
    "reset": ({"reset_after_chunks": 4}, "failed", 4, True),
    "an error": ({"error_after_chunks": 4}, "failed", 4, True),
    "a torn line": ({"truncate_chunk": 4}, "failed", 4, True),
}


ONLY_IN_STREAMS = ("two ends", "a torn line")


@pytest.mark.parametrize("mode", MODES)
async def test_u3_text_is_never_counted_as_zero(gateway, fake, mode):
    path, body = MODES[mode]
    body = {**body, "options": {"num_predict": 9}}
    found = {}
    async with gateway.client(gateway.key) as client:
        for ending, (fault, *_) in ENDINGS.items():
            fake.clear_faults()
            if fault:
                fake.faults(path=path, times=1, **fault)
            answer = await client.post(path, json=body)
            found[ending] = await gateway.record(answer.headers["x-request-id"])
            if ending != "whole" and ENDINGS[ending][1] == "ok":
                assert answer.status_code == 200
    for ending, (_, outcome, tokens, estimated) in ENDINGS.items():
        record = found[ending]
        told = (ending, record.outcome, record.completion_tokens, record.estimated, record.error)
        if body.get("stream", True):
            assert (record.outcome, record.estimated) == (outcome, estimated), told
            assert tokens <= record.completion_tokens <= tokens + 1, told
            assert record.prompt_tokens > 0, told
        else:
            # Of an answer that is no stream there is nothing before its end.
            assert record.outcome == outcome or ending in ONLY_IN_STREAMS, told
            if record.outcome == "ok":
                assert record.estimated == (estimated and ending not in ONLY_IN_STREAMS), told
                assert min(record.prompt_tokens, record.completion_tokens) > 0, told
            else:
                assert record.completion_tokens > 0 or record.status == 502, told


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_u3_leaving_dodges_no_meter(gateway, fake, path, after):
    fake.faults(path=path, infinite=True, tokens_per_second=50)
    body = MODES["chat, streamed" if path == "/api/chat" else "generate, streamed"][1]
    async with gateway.client(gateway.key) as client, client.stream("POST", path, json=body) as answer:
        lines = answer.aiter_lines()
        for _ in range(after):
            await anext(lines)
    await fake.saw_disconnect()
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("cancelled", True)
    assert record.prompt_tokens > 0
    assert after <= record.completion_tokens <= seen(fake, path)[-1].tokens


async def test_u3_leaving_before_an_unary_answer_is_recorded_with_its_prompt(gateway, fake):
    fake.faults(path="/api/chat", hang_before_headers=True, times=1)
    async with gateway.client(gateway.key) as client:
        call = asyncio.create_task(client.post("/api/chat", json=chat(stream=False)))
        await fake.saw("hung")
        call.cancel()
        await asyncio.wait([call])
    await fake.saw_disconnect()
    record = await gateway.record(seen(fake)[-1].header("x-request-id"))
    assert (record.outcome, record.estimated) == ("cancelled", True)
    assert record.prompt_tokens > 0


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
async def test_u3_embeddings_are_metered(gateway, fake, path):
    body = {"model": "nomic-embed-text", "input" if path == "/api/embed" else "prompt": "some text to embed"}
    async with gateway.client(gateway.key) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        record = await gateway.record(answer.headers["x-request-id"])
        assert record.prompt_tokens > 0
        assert record.estimated == (path == "/api/embeddings")  # which reports nothing
        fake.faults(path=path, no_usage=True)
        answer = await client.post(path, json=body)
        record = await gateway.record(answer.headers["x-request-id"])
    assert record.outcome == "ok"


# S3, S4


@asynccontextmanager
async def held_streams(gateway, fake, count):
    """So many streams that have begun and wait for `fake.release()`; gives the tasks."""
    await fake.switch(slots=count)
    fault = fake.faults(path="/api/chat", hang_after_chunks=1)
    tasks = []
    while len(tasks) < count:  # of more at once than its queue holds, an Ollama refuses some
        tasks += [asyncio.create_task(raw_stream(gateway)) for _ in range(min(250, count - len(tasks)))]
        all_hang = asyncio.create_task(fake.saw("hung", len(tasks), timeout=60))
        await asyncio.wait([*tasks, all_hang], return_when=asyncio.FIRST_COMPLETED)
        assert all_hang.done(), [task.result() for task in tasks if task.done()]
        await all_hang
    fake.book.rules.remove(fault)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def raw_stream(gateway):
    """Without httpx, whose pool takes seconds for hundreds of calls at once."""
    body = json.dumps(chat(options={"num_predict": 5})).encode()
    async with RawClient(gateway.port) as client:
        answer = await client.ask("POST", "/api/chat", (b"Authorization", b"Bearer " + gateway.key.encode()), body=body)
    return SimpleNamespace(status_code=answer.status, headers=dict(answer.headers), content=answer.body)


def connections_to(postgres, gateway):
    name = gateway.database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url) as connection:
        question = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> ALL(%s)"
        ours = [own.connection.info.backend_pid for own in gateway._connections if own.connection]
        return connection.execute(question, [name, ours]).fetchone()[0]


def note_uses(gateway):
    """Has the database count how often the last use of a key is written, in the table uses_noted."""
    table = "tenants_apikeylastused"
    if gateway.connection.vendor == "sqlite":
        note = "BEGIN INSERT INTO uses_noted VALUES ('now'); END"
        statements = [f"CREATE TRIGGER noted_{event} AFTER {event} ON {table} {note}" for event in ("INSERT", "UPDATE")]
    else:
        body = "BEGIN INSERT INTO uses_noted VALUES ('now'); RETURN NULL; END"
        statements = [
            f"CREATE FUNCTION note_use() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
            f"CREATE TRIGGER noted AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note_use()",
        ]
    with gateway.connection.cursor() as cursor:
        for statement in ("CREATE TABLE uses_noted (at text)", *statements):
            cursor.execute(statement)


def uses_noted(gateway):
    with gateway.connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM uses_noted")
        return cursor.fetchone()[0]


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
async def test_s3_s4_a_thousand_calls_that_end_at_once(make_gateway, fake, database_url, request, capsys):
    workers = 4
    gateway = await started(make_gateway, fake, database_url=database_url, workers=workers)
    note_uses(gateway)
    async with held_streams(gateway, fake, 1000) as tasks:
        fake.release()
        answers = await asyncio.gather(*tasks)
        ended = time.monotonic()
        assert {answer.status_code for answer in answers} == {200}
        records = await gateway.wait_for_records(1000, seconds=60)
        took = time.monotonic() - ended
        if gateway.connection.vendor == "postgresql":
            opened = connections_to(request.getfixturevalue("postgres"), gateway)
            assert opened <= 10 * workers, f"{opened} connections for {workers} workers"
    with capsys.disabled():
        print(f"\n  1,000 records {took:.2f} s after the last answer", end=" ")
    assert {record.pk.hex for record in records} == {answer.headers["x-request-id"] for answer in answers}
    assert {record.outcome for record in records} == {"ok"}
    assert reconcile(gateway.alias) == []
    assert gateway.rows(ApiKeyLastUsed).count() == 1
    assert uses_noted(gateway) == 1
    log = gateway.log().lower()
    assert "locked" not in log
    assert "stay in the spool" not in log


async def test_s4_pages_by_the_hundred_keep_no_connection(make_gateway, fake, postgres, postgres_url, capsys):
    """Of strangers: whoever is not signed in sees this page."""
    gateway = await started(make_gateway, fake, database_url=postgres_url)
    most, statuses = 0, Counter()
    async with gateway.client(limits=httpx.Limits(max_connections=200)) as client:
        asked = [asyncio.create_task(client.get("/account/login/", timeout=60)) for _ in range(400)]
        while not all(task.done() for task in asked):
            most = max(most, await asyncio.to_thread(connections_to, postgres, gateway))
            await asyncio.sleep(0.05)
        key = {"authorization": f"Bearer {gateway.key}"}
        statuses.update(task.result().status_code for task in asked)
        assert (await client.post("/api/chat", headers=key, json=chat(stream=False))).status_code == 200
        # A client that does not send what it announced keeps no place from others.
        slow = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(12)]
        for _, writer in slow:
            writer.write(b"POST /account/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        assert (await client.get("/account/login/")).status_code == 200
        for _, writer in slow:
            writer.close()
    with capsys.disabled():
        print(f"\n  400 pages at once: {dict(statuses)}, at most {most} connections", end=" ")
    assert statuses[200] >= 50
    assert set(statuses) <= {200, 503}
    assert most <= 10
    async with asyncio.timeout(30):
        while await asyncio.to_thread(connections_to, postgres, gateway) > 5:
            await asyncio.sleep(0.1)
    assert "too many clients" not in gateway.log()


# S5


async def check_refuses(gateway, fake, client):
    before = len(seen(fake))
    answer = await client.post("/api/chat", json=chat())
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (503, "ledger_full"), answer.text
    assert answer.headers["retry-after"]
    assert "error" in answer.json()
    assert len(seen(fake)) == before
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/livez")).status_code == 200


async def until_served(client, seconds=15):
    """A call and /readyz alike. At the bound of the spool one call may still go, and fill it again."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await client.post("/api/chat", json=chat(stream=False))
        ready = await client.get("/readyz")
        if answer.status_code == ready.status_code == 200:
            return answer
        assert {answer.status_code, ready.status_code} <= {200, 503}, answer.text
        assert time.monotonic() < deadline, answer.text + ready.text
        await asyncio.sleep(0.05)


async def check_recorded(gateway, fake, answers):
    """All calls the fake saw have one record each, and these have the outcome their clients saw."""
    ids = {call.header("x-request-id") for call in seen(fake)}
    records = {record.pk.hex: record for record in await gateway.wait_for_records(len(ids), 20)}
    assert records.keys() == ids
    for answer in answers:
        assert records[answer.headers["x-request-id"]].outcome == "ok"
    assert reconcile(gateway.alias) == []
    assert not list((gateway.directory / "spool").rglob("quarantine.jsonl"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root; test_s5_no_file_may_grow covers the rest")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place):
    """Takes what room is left; returns the file."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return ballast


@pytest.mark.parametrize("database", ["working", "locked"])
async def test_s5_a_full_disk_refuses_new_calls_and_lets_the_running_ones_end(make_gateway, fake, small_disk, database):
    gateway = await started(make_gateway, fake, SPOOL_DIR=str(small_disk / "spool"))
    async with gateway.client(gateway.key) as client:
        await until_served(client)
        async with held_streams(gateway, fake, 3) as tasks:
            lock = locked(gateway) if database == "locked" else None
            if lock:
                lock.__enter__()
            try:
                ballast = fill(small_disk)
                # Some entries may still fit into the last page.
                admitted = []
                while (answer := await client.post("/api/chat", json=chat(stream=False))).status_code == 200:
                    admitted.append(answer)
                    assert len(admitted) < 100
                await check_refuses(gateway, fake, client)
                fake.release()
                answers = await asyncio.gather(*tasks)
                assert all(b'"done":true' in answer.content for answer in answers)
                if not lock:
                    # Kept in memory, and the database takes them from there, disk or no disk.
                    await gateway.wait_for_records(4 + len(admitted))
                else:
                    await check_refuses(gateway, fake, client)
                ballast.unlink()
                await until_served(client)
            finally:
                if lock:
                    lock.__exit__(None, None, None)
            await check_recorded(gateway, fake, [*answers, *admitted])
    assert "Traceback" not in gateway.log()


async def test_s5_a_read_only_disk_refuses_calls_until_it_is_writable(make_gateway, fake, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    gateway = make_gateway(SPOOL_DIR=str(small_disk / "spool"))
    gateway.make_backend(fake.url)
    _, key = gateway.make_key()
    gateway.start(wait=False)
    await until_listening(gateway)
    async with gateway.client(key) as client:
        await check_refuses(gateway, fake, client)
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        answer = await until_served(client)
        await check_recorded(gateway, fake, [answer])
    assert "Traceback" not in gateway.log()


async def until_listening(gateway, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        except ConnectionError:
            assert time.monotonic() < deadline, gateway.log()
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return


async def test_s5_no_file_may_grow_database_and_spool_alike(make_gateway, fake):
    """One disk for all, and it is full: RLIMIT_FSIZE on the running process."""
    gateway = await started(make_gateway, fake)
    process = psutil.Process(gateway.process.pid)
    async with gateway.client(gateway.key) as client:
        await until_served(client)
        async with held_streams(gateway, fake, 3) as tasks:
            process.rlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                await check_refuses_soon(client)
                await check_refuses(gateway, fake, client)
                fake.release()
                answers = await asyncio.gather(*tasks)
                assert all(b'"done":true' in answer.content for answer in answers)
                assert gateway.rows(UsageRecord).count() <= 2
            finally:
                process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await until_served(client)
            await check_recorded(gateway, fake, answers)


async def check_refuses_soon(client):
    for _ in range(100):
        if (await client.post("/api/chat", json=chat(stream=False))).status_code == 503:
            return
    raise AssertionError("a hundred calls were admitted on a full disk")


async def test_s5_the_bound_of_the_spool_holds(make_gateway, fake):
    gateway = await started(make_gateway, fake, SPOOL_MAX_BYTES=str(MIB))
    admitted = []
    body = chat(stream=False, options={"num_predict": 1})
    async with gateway.client(gateway.key) as client:
        await until_served(client)
        with locked(gateway):

            async def call_until_refused():
                while (answer := await client.post("/api/chat", json=body)).status_code == 200:
                    admitted.append(answer)
                    assert len(admitted) < 5000

            await asyncio.gather(*(call_until_refused() for _ in range(8)))
            # For one that is some bytes shorter there may still be room.
            while (answer := await client.post("/api/chat", json=chat())).status_code == 200:
                admitted.append(answer)
            await check_refuses(gateway, fake, client)
            size = sum(path.stat().st_size for path in (gateway.directory / "spool").rglob("*.log"))
            assert MIB // 2 < size <= MIB
        await until_served(client)
        await check_recorded(gateway, fake, admitted)


# U11


async def test_u11_the_roll_ups_hold_what_the_records_say(gateway, fake):
    async with gateway.client(gateway.key) as client:
        for number in range(12):
            if number % 3 == 0:
                fake.faults(path="/api/chat", eof_after_chunks=2, times=1)
            await client.post("/api/chat", json=chat(options={"num_predict": number + 3}))
    await gateway.wait_for_records(12)
    assert reconcile(gateway.alias) == []
    buckets = gateway.rows(UsageBucket)
    assert sum(bucket.requests for bucket in buckets) == 12
    assert sum(bucket.failures for bucket in buckets) == 4
    assert sum(bucket.estimated for bucket in buckets) == 4
