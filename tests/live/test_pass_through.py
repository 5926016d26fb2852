"""Routes that a superuser adds for what a newer Ollama can: default-deny without, recorded and limited with them."""

import asyncio
import json

import pytest
import pytest_asyncio

from proxy.models import PassThroughRoute
from tenants.models import Limit
from tests.live.seen import calls

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url)
    made.keys = {
        "plain": made.make_key("plain")[1],
        "one model": made.make_key("one model", models_allowed=["qwen3:8b"])[1],
        "manager": made.make_key("manager", may_manage=True)[1],
        "limited": made.make_key("limited")[1],
    }
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", "qwen3:8b", key=made.keys["plain"])


def answering(shared_fake, path, body, kind="application/json"):
    """Has the fake answer a path that it does not know, as a newer server would."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return shared_fake.faults(path=path, raw=head + body, raw_close=True)


async def added(gateway, key, method, path, **fields):
    """Adds a route, and returns when it is in force."""
    row = gateway.rows(PassThroughRoute).create(path=path, method=method, **fields)
    async with gateway.client(gateway.keys[key]) as client, asyncio.timeout(20):
        while (await client.request("OPTIONS", path)).status_code == 404:
            await asyncio.sleep(0.02)
    return row


async def ask(gateway, key, method, path, body=None):
    async with gateway.client(gateway.keys[key]) as client:
        return await client.request(method, path, json=body)


async def test_p1_a_route_exists_while_it_is_in_the_table_and_on(gateway, shared_fake):
    shared_fake.reset()
    body = {"model": "llama3.2", "query": "x"}
    assert (await ask(gateway, "plain", "POST", "/api/rerank", body)).status_code == 404
    assert not [call for call in calls(shared_fake) if call.path == "/api/rerank"]
    said = json.dumps({"model": "llama3.2", "scores": [1, 2], "prompt_eval_count": 7, "eval_count": 0})
    answering(shared_fake, "/api/rerank", said)
    row = await added(gateway, "plain", "POST", "/api/rerank", right="infer")
    answer = await ask(gateway, "plain", "POST", "/api/rerank", body)
    assert (answer.status_code, answer.text) == (200, said)
    assert (await ask(gateway, "plain", "GET", "/api/rerank")).status_code == 405
    assert (await ask(gateway, "plain", "POST", "/api/rerank/", body)).status_code == 404
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.endpoint, record.model, record.prompt_tokens, record.outcome) == (
        "/api/rerank", "llama3.2:latest", 7, "ok",
    )  # fmt: skip
    gateway.rows(PassThroughRoute).filter(pk=row.pk).update(enabled=False)
    async with asyncio.timeout(20):
        while (await ask(gateway, "plain", "POST", "/api/rerank", body)).status_code != 404:
            await asyncio.sleep(0.02)
    row.delete()


async def test_m1_the_rules_for_models_hold(gateway, shared_fake):
    shared_fake.reset()
    answering(shared_fake, "/api/classify", "{}")
    row = await added(gateway, "plain", "POST", "/api/classify", right="infer")
    for name in ("llama3.2", "LLAMA3.2:latest"):
        answer = await ask(gateway, "one model", "POST", "/api/classify", {"MODEL": name})
        assert (answer.status_code, answer.headers["x-gateway-error"]) == (404, "model_not_allowed")
    assert (await ask(gateway, "one model", "POST", "/api/classify", {})).status_code == 400
    assert not [call for call in calls(shared_fake) if call.path == "/api/classify"]
    answer = await ask(gateway, "one model", "POST", "/api/classify", {"MODEL": "qwen3:8b", "keep_alive": 0, "x": "y"})
    assert answer.status_code == 200
    (seen,) = [call for call in calls(shared_fake) if call.path == "/api/classify"]
    assert json.loads(seen.body) == {"model": "qwen3:8b", "x": "y", "options": {"num_predict": 4096}}
    row.delete()


async def test_p2_only_keys_with_the_right_have_it(gateway, shared_fake):
    shared_fake.reset()
    answering(shared_fake, "/api/gpu", '{"gpus": 2}')
    row = await added(gateway, "manager", "GET", "/api/gpu", right="manage", names_model=False)
    answer = await ask(gateway, "plain", "GET", "/api/gpu")
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (403, "endpoint_not_allowed")
    async with gateway.client() as client:
        assert (await client.get("/api/gpu")).status_code == 401
    assert not [call for call in calls(shared_fake) if call.path == "/api/gpu"]
    async with gateway.client(gateway.keys["manager"]) as client:
        answer = await client.get("/api/gpu?verbose=1", headers={"cookie": "a=b", "x-forwarded-for": "1.2.3.4"})
    assert (answer.status_code, answer.text) == (200, '{"gpus": 2}')
    (seen,) = [call for call in calls(shared_fake) if call.path == "/api/gpu"]
    assert "cookie" not in str(seen.headers).lower()
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.endpoint, record.model, record.completion_tokens, record.outcome) == ("/api/gpu", "", 0, "ok")
    row.delete()


async def test_m1_a_body_that_names_a_model_after_all_is_refused(gateway, shared_fake):
    shared_fake.reset()
    answering(shared_fake, "/api/tokenize", '{"tokens": [1]}')
    row = await added(gateway, "plain", "POST", "/api/tokenize", right="list", names_model=False)
    for body in ({"model": "llama3.2"}, {"Name": "llama3.2", "text": "x"}):
        answer = await ask(gateway, "plain", "POST", "/api/tokenize", body)
        assert (answer.status_code, answer.headers["x-gateway-error"]) == (400, "model_not_expected")
    assert not [call for call in calls(shared_fake) if call.path == "/api/tokenize"]
    assert (await ask(gateway, "plain", "POST", "/api/tokenize", {"text": "x"})).status_code == 200
    row.delete()


async def test_u6_it_is_limited_as_any_call(gateway, shared_fake):
    shared_fake.reset()
    answering(shared_fake, "/api/limited", "{}")
    row = await added(gateway, "plain", "GET", "/api/limited", right="list", names_model=False)
    key = gateway.keys["limited"].split("_")[1]
    found = {"metric": "requests", "window": "day", "scope": "key"}
    subject = gateway.rows(Limit.key.field.related_model).get(prefix=key)
    gateway.rows(Limit).create(**found, key=subject, amount=3)
    async with gateway.client(gateway.keys["limited"]) as client, asyncio.timeout(30):
        statuses = []
        while 429 not in statuses:  # the limit is in force within a second
            statuses.append((await client.get("/api/limited")).status_code)
    assert set(statuses) == {200, 429}
    assert len([call for call in calls(shared_fake) if call.path == "/api/limited"]) == statuses.count(200)
    row.delete()


async def test_b3_a_stream_passes_line_by_line_and_never_ends_cleanly_when_it_was_cut(gateway, shared_fake):
    shared_fake.reset()
    lines = '{"n":1}\n{"n":2,"prompt_eval_count":3,"eval_count":2}\n'
    row = await added(gateway, "plain", "POST", "/api/think", right="infer")
    answering(shared_fake, "/api/think", lines, "application/x-ndjson")
    answer = await ask(gateway, "plain", "POST", "/api/think", {"model": "llama3.2"})
    assert (answer.status_code, answer.text) == (200, lines)
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (3, 2, False)
    shared_fake.reset()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"
    shared_fake.faults(path="/api/think", raw=head + lines, raw_close=True)
    answer = await ask(gateway, "plain", "POST", "/api/think", {"model": "llama3.2"})
    assert answer.text.startswith(lines)
    assert "broke off its answer" in json.loads(answer.text.splitlines()[-1])["error"]
    assert (await gateway.record(answer.headers["x-request-id"])).outcome == "failed"
    row.delete()


async def test_b10_a_client_that_leaves_a_stream_whose_end_nobody_knows_has_left(gateway, shared_fake):
    shared_fake.reset()
    row = await added(gateway, "plain", "POST", "/api/muse", right="infer")
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"
    shared_fake.faults(path="/api/muse", raw=head + '{"n":1}\n', raw_close=False)
    async with (
        gateway.client(gateway.keys["plain"]) as client,
        client.stream("POST", "/api/muse", json={"model": "llama3.2"}) as answer,
    ):
        assert await anext(answer.aiter_lines()) == '{"n":1}'
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error) == ("cancelled", "client_gone")
    row.delete()


async def test_p1_a_row_that_only_sql_can_write_is_left_out(gateway, shared_fake):
    shared_fake.reset()
    gateway.rows(PassThroughRoute).create(path="/api/pull/all", method="POST", right="infer", names_model=False)
    gateway.rows(PassThroughRoute).create(path="/api/delete", method="POST", right="infer", names_model=False)
    row = await added(gateway, "plain", "GET", "/api/after", right="list", names_model=False)
    assert (await ask(gateway, "plain", "POST", "/api/pull/all", {})).status_code == 404
    assert (await ask(gateway, "plain", "POST", "/api/delete", {})).status_code == 405
    assert not [call for call in calls(shared_fake) if call.path in ("/api/pull/all", "/api/delete")]
    row.delete()
