"""The playground: calls over `/ws/chat` are calls like all others, made with a key of whoever is signed in."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from django.contrib.sessions.models import Session
from django.utils import timezone
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tenants.models import ApiKey, IPRule, Limit, Role, Tenant
from tests.live.signed_in import make_person, sign_in
from tests.live.test_live_page import open_socket
from usage.models import StoredText

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(DEFAULT_OUTPUT_TOKENS="50")
    made.make_backend(shared_fake.url, slots=8)
    made.alice = make_person(made, "alice", acme=Role.OWNER)
    made.bob = make_person(made, "bob", acme=Role.MEMBER)
    made.key, made.secret = made.make_key("alice's", user=made.alice)
    made.bobs, _ = made.make_key("bob's", user=made.bob)
    made.service, _ = made.make_key("service")
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", "qwen3:8b", key=made.secret)


class Chat:
    def __init__(self, socket):
        self.socket = socket

    async def say(self, message):
        await self.socket.send(json.dumps(message))

    async def ask(self, key, text="Why is the sky blue?", **fields):
        await asyncio.sleep(0.11)  # people ask less than ten times a second
        messages = [{"role": "user", "content": text}]
        await self.say({"type": "ask", "key": key.prefix, "model": "llama3.2", "messages": messages, **fields})

    async def next(self):
        async with asyncio.timeout(PATIENCE):
            return json.loads(await self.socket.recv())

    async def until(self, *types):
        """All that is said up to one of some types."""
        said = [await self.next()]
        while said[-1]["type"] not in types:
            said.append(await self.next())
        return said


@asynccontextmanager
async def chat(gateway, user, **options):
    session = sign_in(gateway, user)
    async with open_socket(gateway, session, "/ws/chat", **options) as socket:
        made = Chat(socket)
        made.session = session
        yield made


async def answered(page, key, **fields):
    await page.ask(key, **fields)
    return await page.until("ended", "failed", "refused")


async def test_an_answer_streams_and_leaves_a_record_as_any_call_does(gateway, shared_fake):
    since = len(shared_fake.calls)
    shared_fake.faults(path="/api/chat", model="llama3.2", tokens_per_second=40, times=1)
    async with chat(gateway, gateway.alice) as page:
        said = await answered(page, gateway.key, options={"num_predict": 20, "temperature": 0.5})
    begun, *pieces, ended = said
    assert (begun["type"], begun["backend"], ended["type"]) == ("begun", "one", "ended")
    assert {piece["type"] for piece in pieces} == {"piece"}
    assert len(pieces) > 1
    text = "".join(piece["text"] for piece in pieces)
    record = await gateway.record(begun["call"], PATIENCE)
    assert (record.outcome, record.endpoint, record.stream, record.status) == ("ok", "/api/chat", True, 200)
    assert (record.api_key_id, record.user_id, record.tenant_name) == (gateway.key.pk, gateway.alice.pk, "acme")
    assert (record.prompt_tokens, record.completion_tokens) == (ended["prompt_tokens"], ended["completion_tokens"])
    assert (record.user_agent, record.client_address) == ("ollama-gateway-playground", "127.0.0.1")
    assert text
    seen = [call for call in shared_fake.calls[since:] if call.path == "/api/chat"]
    assert len(seen) == 1
    assert seen[0].json["options"]["temperature"] == 0.5
    assert seen[0].json["stream"] is True


async def test_stop_frees_the_backend_at_once_and_the_next_question_is_answered(gateway, shared_fake):
    armed = shared_fake.faults(path="/api/chat", model="qwen3:8b", infinite=True, tokens_per_second=50, times=1)
    async with chat(gateway, gateway.alice) as page:
        await page.ask(gateway.key, model="qwen3:8b")
        said = await page.until("piece")
        (running,) = [call for call in shared_fake.calls if call.path == "/api/chat" and not call.complete]
        await page.say({"type": "stop"})
        assert (await page.until("stopped"))[-1] == {"type": "stopped"}
        async with asyncio.timeout(PATIENCE):
            while not running.disconnected:
                await asyncio.sleep(0.01)
        record = await gateway.record(said[0]["call"], PATIENCE)
        assert (record.outcome, record.error) == ("cancelled", "client_gone")
        assert record.completion_tokens > 0
        assert (await answered(page, gateway.key))[-1]["type"] == "ended"
    assert not armed.times
    shared_fake.clear_faults()


@pytest.mark.parametrize("how", ["leaves", "signs out"])
async def test_t13_a_page_that_goes_takes_its_call_along(gateway, shared_fake, how):
    shared_fake.faults(path="/api/chat", model="qwen3:8b", infinite=True, tokens_per_second=50, times=1)
    async with chat(gateway, gateway.alice) as page:
        await page.ask(gateway.key, model="qwen3:8b")
        said = await page.until("piece")
        if how == "signs out":
            gateway.rows(Session).filter(session_key=page.session).delete()
            with pytest.raises(ConnectionClosed) as closed:
                await page.until("never")
            assert closed.value.rcvd.code == 4401
    record = await gateway.record(said[0]["call"], PATIENCE)
    assert (record.outcome, record.error) == ("cancelled", "client_gone")
    shared_fake.clear_faults()


async def test_t1_a_key_of_another_is_no_key(gateway):
    async with chat(gateway, gateway.alice) as page:
        # Not even of the tenant that one owns: the call would be another's.
        for key in (gateway.bobs, gateway.service):
            assert (await answered(page, key))[-1]["type"] == "refused"
        await page.say({"type": "ask", "key": "a\x00b", "model": "llama3.2", "messages": []})
        assert (await page.until("refused"))[-1]["why"].startswith("This is no key of yours")
    assert not gateway.records(api_key=gateway.bobs)


async def test_rights_limits_and_rules_hold_as_for_any_call(gateway):
    async def until_refused(page, key, code):
        async with asyncio.timeout(PATIENCE):
            while (last := (await answered(page, key))[-1])["type"] == "ended":
                await asyncio.sleep(0.05)  # the change acts within a second
        assert (last["type"], last["status"]) == ("failed", code)
        return last["why"]

    async with chat(gateway, gateway.bob) as page:
        assert (await answered(page, gateway.bobs))[-1]["type"] == "ended"
        assert "not found" in (await answered(page, gateway.bobs, model="no-such"))[-1]["why"]
        limit = gateway.rows(Limit).create(scope="key", key=gateway.bobs, metric="requests", window="day", amount=1)
        assert "requests per day" in await until_refused(page, gateway.bobs, 429)
        gateway.rows(Limit).filter(pk=limit.pk).delete()
        rule = gateway.rows(IPRule).create(cidr="127.0.0.0/8", action="deny", key=gateway.bobs)
        async with asyncio.timeout(PATIENCE):
            while (await answered(page, gateway.bobs))[-1].get("status") != 401:
                await asyncio.sleep(0.05)
        gateway.rows(IPRule).filter(pk=rule.pk).delete()
        gateway.rows(ApiKey).filter(pk=gateway.bobs.pk).update(models_allowed=["qwen3:*"])
        async with asyncio.timeout(PATIENCE):
            while (await answered(page, gateway.bobs))[-1].get("status") != 404:
                await asyncio.sleep(0.05)
        assert (await answered(page, gateway.bobs, model="qwen3:8b"))[-1]["type"] == "ended"
        gateway.rows(ApiKey).filter(pk=gateway.bobs.pk).update(models_allowed=[], revoked_at=timezone.now())
        assert (await answered(page, gateway.bobs))[-1]["type"] == "refused"


async def test_a_revoked_key_cuts_the_answer_that_runs(gateway, shared_fake):
    row, _ = gateway.make_key("short-lived", user=gateway.alice)
    shared_fake.faults(path="/api/chat", model="qwen3:8b", infinite=True, tokens_per_second=50, times=1)
    async with chat(gateway, gateway.alice) as page:
        async with asyncio.timeout(PATIENCE):
            while True:  # the key is new
                await page.ask(row, model="qwen3:8b")
                said = await page.until("piece", "failed")
                if said[-1]["type"] == "piece":
                    break
        gateway.rows(ApiKey).filter(pk=row.pk).update(revoked_at=timezone.now())
        last = (await page.until("failed"))[-1]
    assert "withdrawn" in last["why"]
    assert (await gateway.record(said[0]["call"], PATIENCE)).outcome == "cut"
    shared_fake.clear_faults()


async def test_one_answer_at_a_time_and_a_broken_one_is_told(gateway, shared_fake):
    shared_fake.faults(path="/api/chat", model="qwen3:8b", infinite=True, tokens_per_second=50, times=1)
    async with chat(gateway, gateway.alice) as page:
        await page.ask(gateway.key, model="qwen3:8b")
        await page.until("piece")
        await page.ask(gateway.key)
        assert (await page.until("refused"))[-1]["why"].startswith("An answer is on its way")
        await page.say({"type": "stop"})
        await page.until("stopped")
        shared_fake.clear_faults()
        shared_fake.faults(path="/api/chat", model="qwen3:8b", reset_after_chunks=3, times=1)
        said = await answered(page, gateway.key, model="qwen3:8b")
        assert said[-1]["type"] == "failed"
        assert "broke off" in said[-1]["why"]
    shared_fake.clear_faults()


async def test_texts_are_stored_where_the_tenant_has_it_so(gateway):
    tenant = gateway.rows(Tenant).filter(name="acme")
    tenant.update(keeps_texts=True)
    async with chat(gateway, gateway.alice) as page, asyncio.timeout(PATIENCE):
        while True:  # the switch acts within a second
            call = (await answered(page, gateway.key, text="a canary of the playground"))[0]["call"]
            await gateway.record(call, PATIENCE)
            await asyncio.sleep(0.3)
            if text := gateway.rows(StoredText).filter(pk=call).first():
                break
    tenant.update(keeps_texts=False)
    assert (text.prompt, text.user_id) == ("a canary of the playground", gateway.alice.pk)


async def test_t13_strangers_and_foreign_pages_get_no_socket(gateway):
    for session, origin in (("", gateway.url), (sign_in(gateway, gateway.alice), "https://evil.example")):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(gateway, session, "/ws/chat", origin=origin):
                pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", 4400), ("[]", 4400), ('{"type": "ask"}', 4400), ('{"type": "ask", "key": 1, "model": "m"}', 4400),
        (b"\x00", 4413), ("x" * 70_000, 1009),
    ],
)  # fmt: skip
async def test_t13_odd_messages_end_the_socket(gateway, message, code):
    async with chat(gateway, gateway.alice) as page:
        with pytest.raises(ConnectionClosed) as closed:
            await page.socket.send(message)
            await page.until("never")
        assert closed.value.rcvd is None or closed.value.rcvd.code == code


async def test_l11_whatever_is_in_a_question_it_is_refused_in_words(gateway):
    odd = [
        {"messages": [1]}, {"messages": [{"role": "user", "content": 7}]}, {"options": "x"},
        {"options": {"num_ctx": -1}}, {"model": ""}, {"model": "x" * 3000},
        {"model": "../../etc"}, {"think": [1]}, {"keep_alive": {}},
    ]  # fmt: skip
    async with chat(gateway, gateway.alice) as page:
        for fields in odd:
            last = (await answered(page, gateway.key, **fields))[-1]
            assert last["type"] in ("failed", "ended"), fields
            assert last["type"] == "ended" or 400 <= last["status"] < 500, (fields, last)
        assert (await answered(page, gateway.key))[-1]["type"] == "ended"
