"""Rows B3, B4, A7, L1, U3 in every dialect with real servers: how broken streams end, and what they cost."""

import asyncio
import json

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tenants.models import ApiKey
from tests.proxy.transcripts import STREAMS, TOKENS, record_all

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One of each dialect and route: the other kinds of answers are cut at every byte in tests/proxy/test_cut_streams.py.
ONE_OF_EACH = ["chat", "generate", "openai chat", "completions", "responses", "messages"]
CUTS = 14
SLACK = 80


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url, slots=8)
    made.key_row, made.key = made.make_key()
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


def request_of(name, *, stream=True):
    path, model, fields = STREAMS[name]
    return path, {"model": model, "stream": stream, **fields}


def last_error(path, text):
    """The text of the error that ends a stream, in the shape of its dialect."""
    if path.startswith("/api/"):
        return json.loads(text.strip().rpartition("\n")[2])["error"]
    *_, last = text.strip().split("\n\n")
    name, _, data = last.rpartition("data: ")
    if path in ("/v1/messages", "/v1/responses"):
        assert name == "event: error\n"
        assert json.loads(data)["type"] == "error"
    else:
        assert name == ""
    return json.loads(data)["error"]["message"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
async def test_b3_u3_cut_anywhere_an_answer_is_a_failure_that_costs_what_came(gateway, client, fake, stream):
    transcripts = await record_all(stream=stream)
    fates = {}
    for name in ONE_OF_EACH:
        transcript = transcripts[name]
        path, request = request_of(name, stream=stream)
        end = transcript.end if stream else len(transcript.body.rstrip())
        # Stamps, durations and ids differ in length by some bytes from one answer to the next.
        for size in sorted({*range(0, end - SLACK, max(end // CUTS, 1)), end - SLACK}):
            how = "rst" if size % 2 else "fin"
            fake.faults(
                times=1, path=path, tokens=TOKENS, cut_after_bytes=size, cut_counts_body_only=True, cut_with=how
            )
            answer = await client.post(path, json=request)
            where = (path, size, answer.text[-200:])
            if stream and answer.status_code == 200:
                assert "broke off its answer" in last_error(path, answer.text), where
            else:  # not a byte of the body came, or the answer was to be in one piece
                assert answer.status_code == 502, where
                assert "x-should-retry" in answer.headers
            fates[answer.headers["x-request-id"]] = (where, transcript, size if how == "fin" else 0, size)
    records = {record.id.hex: record for record in await gateway.wait_for_records(len(fates), 30, id__in=list(fates))}
    for call_id, (where, transcript, arrived, size) in fates.items():  # a reset may overtake what was sent before
        record = records[call_id]
        assert (record.outcome, record.estimated) == ("failed", True), where
        assert record.prompt_tokens > 0, where
        if stream:
            # The gateway asks for the usage that this client did not ask for: some events are longer.
            fewest = transcript.pieces_in(max(arrived - 300, 0))
            assert fewest <= record.completion_tokens <= transcript.pieces_in(size) + 2, where
        else:
            assert record.completion_tokens <= -(-size // 4), where
            assert record.completion_tokens > 0 or size < 10 or record.status == 502, where
    print(f"{len(fates)} answers cut")
    assert len(fates) > 5 * CUTS


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("fault", ["error_after_chunks", "eof_after_chunks", "repetition_stop_after"])
async def test_b3_a_stream_that_ollama_ends_without_a_word_ends_in_an_error(gateway, client, fake, name, fault):
    """On the routes of others it loses the text of its own errors (ollama-api §4.3)."""
    path, request = request_of(name)
    fake.faults(times=1, path=path, tokens=9, **{fault: 3})
    answer = await client.post(path, json=request)
    assert answer.status_code == 200
    assert last_error(path, answer.text)
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("failed", True)
    assert 3 <= record.completion_tokens <= 4
    if fault != "error_after_chunks":
        assert record.error == "incomplete"  # no fault of the backend: a model that repeats itself is stopped so
    elif "completions" in path:
        assert record.error == "broken_stream"


async def test_b4_a_stream_that_falls_silent_ends_in_an_error(make_gateway):
    async with FakeOllama(models=["llama3.2"], slots=8) as fake:
        gateway = make_gateway(BACKEND_GAP_SECONDS="3")
        gateway.make_backend(fake.url, slots=8)
        _, key = gateway.make_key()
        await asyncio.to_thread(gateway.start)
        fake.faults(tokens=9, hang_after_chunks=2)
        requests = [request_of(name) for name in ONE_OF_EACH]
        async with gateway.client(key) as client:
            answers = await asyncio.gather(*(client.post(path, json=request) for path, request in requests))
        for (path, _), answer in zip(requests, answers, strict=True):
            assert "fell silent" in last_error(path, answer.text)
            record = await gateway.record(answer.headers["x-request-id"])
            assert (record.outcome, record.estimated) == ("timeout", True)
            assert 2 <= record.completion_tokens <= 3, path


async def endless(client, name, opened, **headers):
    """(request id, all of its text) of a stream that only somebody else ends."""
    path, request = request_of(name)
    async with client.stream("POST", path, json=request, headers=headers) as answer:
        assert answer.status_code == 200
        text, first = "", True
        async for piece in answer.aiter_text():
            text += piece
            if first:
                opened.release()
                first = False
        return answer.headers["x-request-id"], path, text


async def begun(gateway, client, fake, names=ONE_OF_EACH, **headers):
    fake.faults(infinite=True, tokens_per_second=20)
    opened = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(endless(client, name, opened, **headers)) for name in names]
    async with asyncio.timeout(30):
        for _ in tasks:
            await opened.acquire()
    return tasks


async def judge(gateway, tasks, outcome, words):
    ends = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    for call_id, path, text in ends:
        assert words in last_error(path, text), path
        record = await gateway.record(call_id)
        assert (record.outcome, record.estimated) == (outcome, True), path
        assert record.completion_tokens > 0


async def test_a7_a_withdrawn_right_ends_streams_in_their_dialect(gateway, client, fake):
    row, key = gateway.make_key("to be revoked")
    for _ in range(100):  # until the rules are there
        headers = {"authorization": f"Bearer {key}"}
        if (await client.get("/api/version", headers=headers)).status_code == 200:
            break
        await asyncio.sleep(0.1)
    tasks = await begun(gateway, client, fake, **headers)
    await asyncio.to_thread(gateway.rows(ApiKey).get(pk=row.pk).revoke)
    await judge(gateway, tasks, "cut", "withdrawn")


async def test_b10_a_client_that_leaves_pays_for_what_came(gateway, client, fake):
    tasks = await begun(gateway, client, fake)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    paths = [STREAMS[name][0] for name in ONE_OF_EACH]
    records = await gateway.wait_for_records(len(paths), outcome="cancelled")
    assert sorted(record.endpoint for record in records) == sorted(paths)
    assert all(record.estimated and record.completion_tokens > 0 for record in records)


async def test_l1_a_drain_ends_streams_in_their_dialect(make_gateway):
    async with FakeOllama(models=["llama3.2"], slots=8) as fake:
        gateway = make_gateway(DRAIN_SECONDS="1")
        gateway.make_backend(fake.url, slots=8)
        _, key = gateway.make_key()
        await asyncio.to_thread(gateway.start)
        async with gateway.client(key) as client:
            tasks = await begun(gateway, client, fake)
            gateway.process.terminate()
            await judge(gateway, tasks, "interrupted", "shutting down")
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        gateway.process = None
