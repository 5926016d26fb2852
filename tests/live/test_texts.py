"""Stored prompts and answers: one switch per tenant; with it off, nothing of a text touches the disk."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tenants.models import Tenant
from usage.models import StoredText

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "{}"}]
CALLS = {
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 20}},
    "/api/generate": {"prompt": "{}", "options": {"num_predict": 20}},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 20},
    "/v1/completions": {"prompt": "{}", "max_tokens": 20},
    "/v1/messages": {"messages": MESSAGES[1:], "max_tokens": 20},
    "/v1/responses": {"input": "{}", "max_output_tokens": 20},
    "/api/embed": {"input": ["{}"]},
}
# What a text that is stored must not bring along.
SECRET = "ogw_abcd1234_SECRETthatMustNotBeStored0123456789abcdefgh"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key("kept", tenant="keeps")
    _, made.other_key = made.make_key("unkept", tenant="other")
    made.rows(Tenant).filter(name="keeps").update(keeps_texts=True)
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("qwen3:8b", "nomic-embed-text", key=made.key)


def filled(value, text):
    if isinstance(value, dict):
        return {name: filled(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, text) for each in value]
    return value.replace("{}", text) if isinstance(value, str) else value


async def call(gateway, key, path, text, *, stream=False):
    model = "nomic-embed-text" if path == "/api/embed" else "llama3.2"
    body = {"model": model, **filled(CALLS[path], text), **({} if path == "/api/embed" else {"stream": stream})}
    async with gateway.client(key) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def text_of(gateway, request_id):
    async with asyncio.timeout(PATIENCE):
        while not (found := gateway.rows(StoredText).filter(pk=request_id).first()):
            await asyncio.sleep(0.02)
    return found


def on_disk(gateway, text: str) -> list[str]:
    """Files of the gateway that hold a text: database, write-ahead log, spool, log."""
    found = []
    for path in Path(gateway.directory).rglob("*"):
        if path.is_file() and text.encode() in path.read_bytes():
            found.append(str(path.relative_to(gateway.directory)))
    return found


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("stream", [False, True])
async def test_beginnings_of_prompts_and_answers_are_stored_for_a_tenant_that_has_it_so(gateway, path, stream):
    if path == "/api/embed" and stream:
        return
    prompt = f"canary of {path} {stream}, my key is {SECRET} " + "and so on " * 200
    answer = await call(gateway, gateway.key, path, prompt, stream=stream)
    record = await gateway.record(answer.headers["x-request-id"], PATIENCE)
    text = await text_of(gateway, record.pk)
    assert text.prompt.startswith(f"canary of {path} {stream}, my key is [redacted] and so on")
    assert len(text.prompt) == 1000
    assert (text.tenant_id, text.user_id, text.api_key_id) == (record.tenant_id, record.user_id, record.api_key_id)
    assert abs(text.at - record.started_at) < timedelta(milliseconds=1)
    assert text.model == record.model
    if path == "/api/embed":
        assert text.answer == ""
    else:
        assert text.answer
        assert text.answer.split()[0] in answer.text
        assert len(text.answer) <= 200


async def test_l7_with_the_switch_off_nothing_of_a_text_touches_the_disk(gateway):
    kept, off = "canary-that-is-kept", "canary-that-is-not"
    answers = [await call(gateway, gateway.other_key, path, off) for path in CALLS]
    text = await text_of(gateway, (await call(gateway, gateway.key, "/api/chat", kept)).headers["x-request-id"])
    for answer in answers:
        await gateway.record(answer.headers["x-request-id"], PATIENCE)
    assert text.prompt == kept
    assert on_disk(gateway, off) == []
    assert on_disk(gateway, SECRET) == []
    places = on_disk(gateway, kept)
    assert places
    assert all(Path(place).name.startswith("gateway.sqlite3") for place in places)
    assert not gateway.rows(StoredText).exclude(tenant=gateway.tenant("keeps")).exists()


async def test_the_switch_takes_effect_within_a_second(gateway):
    row, key = gateway.make_key("switched", tenant="switched")
    tenant = gateway.rows(Tenant).filter(pk=row.tenant_id)
    for on in (True, False, True):
        tenant.update(keeps_texts=on)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    answer = await call(gateway, key, "/api/generate", f"switched {on}")
                except AssertionError:
                    continue  # the key is new
                await gateway.record(answer.headers["x-request-id"], PATIENCE)
                # What was kept is stored right after the record is.
                fence = await call(gateway, gateway.key, "/api/generate", "fence")
                await text_of(gateway, fence.headers["x-request-id"])
                if gateway.rows(StoredText).filter(pk=answer.headers["x-request-id"]).exists() == on:
                    break
        print(f"the switch took effect after {time.monotonic() - began:.2f} s")
