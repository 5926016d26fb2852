"""Row U5: a call that is tried on several backends has one record, and is billed once."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio
from django.db import transaction
from django.db.models import F, Sum

from proxy.fake_ollama import FakeOllama
from tenants.models import Limit
from tests.no_tls import NO_TLS
from usage.models import DailyUsage, UsageBucket

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One for each try: what one warms, or takes away, does not steer the next.
MODELS = [f"m{number}" for number in range(40)]
PATIENCE = 30
AMOUNT = 10**6
TRIES = 10
ROWS = {
    # what the first backend does → what the record says: outcome, status, attempts; whether anything is billed
    "answers": ({}, ("ok", 200, 1), True),
    "is busy": ({"busy_503": True}, ("ok", 200, 2), True),
    "lacks the model": ({"lacks_model": True}, ("ok", 200, 2), True),
    "resets before it answers": ({"reset_before_headers": True}, ("failed", 502, 1), True),
    "cannot load": ({"load_error_500": True}, ("failed", 502, 1), False),
    "dies in mid-stream": ({"reset_after_chunks": 2}, ("failed", 200, 1), True),
}


# What a record says of an attempt that another backend followed.
TOLD = {"is busy": [["one", "busy"]], "lacks the model": [["one", "lacks_model"]]}

models = iter(MODELS[1:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fakes():
    many = {"models": MODELS, "slots": 8, "vram": 500}
    async with FakeOllama(**many) as one, FakeOllama(**many) as two:
        yield one, two


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fakes):
    made = make_shared_gateway(PROBE_SECONDS="0.05")
    for name, fake in zip(("one", "two"), fakes, strict=True):
        made.make_backend(fake.url, name, slots=4)
    _, made.key = made.make_key()
    await asyncio.to_thread(made.start)
    return await made.until_it_lists(MODELS[0], key=made.key)


async def warm_at_one(fake):
    """A model that is warm there, and nowhere else: calls of it go there first, as soon as the gateway knows."""
    model = next(models)
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, verify=NO_TLS) as direct:
        await direct.post("/api/generate", json={"model": model})
    since = len(fake.calls)
    async with asyncio.timeout(PATIENCE):
        while sum(call.path == "/api/ps" and call.complete for call in fake.calls[since:]) < 2:
            await asyncio.sleep(0.02)
    return model


def limited(gateway):
    with transaction.atomic(using=gateway.alias):  # known with all its limits, or not at all
        row, key = gateway.make_key("limited")
        for metric, window in (("tokens", "day"), ("requests", "day"), ("concurrent", "none")):
            gateway.rows(Limit).create(scope="key", key=row, metric=metric, window=window, amount=AMOUNT)
    return row, key


async def chat(client, model, stream=True):
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    return await client.post("/api/chat", json={**body, "options": {"num_predict": 20}})


async def until_known(client):
    async with asyncio.timeout(PATIENCE):
        while (await client.get("/api/version")).status_code != 200:
            await asyncio.sleep(0.02)


def left(answer):
    """Of tokens, requests, calls at a time, as an answer tells: with what it reserved itself."""
    return [int(answer.headers[f"x-ratelimit-remaining-{name}"]) for name in ("tokens", "requests", "concurrent")]


async def met(gateway, client, fake, fault):
    """The answer to a call that met a fault at the first backend."""
    for _ in range(TRIES):
        model = await warm_at_one(fake)
        armed = fake.faults(path="/api/chat", model=model, **fault, times=1)
        answer = await chat(client, model)
        await gateway.record(answer.headers["x-request-id"], PATIENCE)
        if not armed.times:
            return answer
        fake.clear_faults()
    raise AssertionError("no call went there")


@pytest.mark.parametrize("what", ROWS)
async def test_u5_a_call_has_one_record_and_is_billed_once_however_often_it_was_tried(gateway, fakes, what):
    fault, said, billed = ROWS[what]
    for fake in fakes:
        fake.clear_faults()
    row, key = limited(gateway)
    async with gateway.client(key) as client:
        await until_known(client)
        answer = await met(gateway, client, fakes[0], fault)
        record = await gateway.record(answer.headers["x-request-id"], PATIENCE)
        assert (record.outcome, record.status, record.attempts) == said, answer.text
        routing = json.loads(record.routing)
        assert routing.get("failed", []) == TOLD.get(what, [])
        assert (routing["warm"], routing["of"]) == (record.attempts == 1, 1 if what == "lacks the model" else 2)
        assert len(routing["limits"]) == 3
        tokens = record.prompt_tokens + record.completion_tokens
        assert bool(tokens) == billed
        if said[0] == "ok":
            final = json.loads(answer.text.splitlines()[-1])
            assert tokens == final["prompt_eval_count"] + final["eval_count"]
            assert [AMOUNT - total for _, total, _ in routing["limits"]] == left(answer)
        await check_account(gateway, row, client)


async def test_u5_a_call_that_nobody_took_has_one_record_and_costs_nothing(gateway, fakes):
    row, key = limited(gateway)
    for fake in fakes:
        fake.clear_faults()
    async with gateway.client(key) as client:
        await until_known(client)
        model = await warm_at_one(fakes[0])
        for fake in fakes:
            fake.faults(path="/api/chat", model=model, busy_503=True)
        answer = await chat(client, model)
        assert answer.status_code == 503
        record = await gateway.record(answer.headers["x-request-id"], PATIENCE)
        assert (record.outcome, record.attempts, record.prompt_tokens + record.completion_tokens) == ("failed", 2, 0)
        for fake in fakes:
            fake.clear_faults()
        await check_account(gateway, row, client)


async def test_u5_a_backend_that_is_gone_when_it_is_asked_counts_as_an_attempt(gateway, fakes):
    row, key = limited(gateway)
    for fake in fakes:
        fake.clear_faults()
    async with gateway.client(key) as client:
        await until_known(client)
        for _ in range(TRIES):  # on a busy machine a probe may be the first to notice
            model = await warm_at_one(fakes[0])
            await fakes[0].switch(refuse_connections=True, drop_connections=True)
            try:
                answer = await chat(client, model)
            finally:
                await fakes[0].switch(listen=True)
            record = await gateway.record(answer.headers["x-request-id"], PATIENCE)
            assert (record.outcome, record.backend) == ("ok", "two")
            if record.attempts == 2:
                break
        assert record.attempts == 2
        await check_account(gateway, row, client)


async def check_account(gateway, row, client):
    """One record a call; the sums are those of the records, and so is what the limits count."""
    made = gateway.records(api_key=row)
    tokens = sum(record.prompt_tokens + record.completion_tokens for record in made)
    for table in (DailyUsage, UsageBucket):
        sums = gateway.rows(table).filter(api_key=row).aggregate(
            requests=Sum("requests"), tokens=Sum(F("prompt_tokens") + F("completion_tokens"))
        )  # fmt: skip
        assert (sums["requests"], sums["tokens"]) == (len(made), tokens), table
    fresh_row, fresh = limited(gateway)
    async with gateway.client(fresh) as other:
        await until_known(other)
        first, next_one = await chat(other, "m0"), await chat(client, "m0")
    assert fresh_row.pk
    dispatched = sum(record.attempts > 0 for record in made)
    reserved = [AMOUNT - amount for amount in left(first)]
    assert [AMOUNT - amount for amount in left(next_one)] == [
        reserved[0] + tokens, reserved[1] + dispatched, reserved[2],
    ]  # fmt: skip
