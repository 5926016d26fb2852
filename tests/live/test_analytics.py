"""`/analytics…` and `/test`: the same paths as users of other proxies know, each seeing what is theirs."""

import asyncio
import json
import re
from datetime import timedelta

import pytest
import pytest_asyncio
from django.db import transaction
from django.utils import timezone

from tenants.models import AuditEntry, IPRule, Role, Tenant
from tests.live.gateway import ROOT
from tests.live.signed_in import make_person, sign_in
from tests.usage.test_request_page import recomputed
from usage.models import Price, StoredText

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30
PATHS = ("/analytics/stats", "/analytics/search", "/analytics/export", "/analytics")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway()
    made.make_backend(shared_fake.url, slots=8)
    made.alice = make_person(made, "alice", acme=Role.OWNER)
    made.bob = make_person(made, "bob", acme=Role.MEMBER)
    _, made.alices = made.make_key("alice's", user=made.alice)
    _, made.bobs = made.make_key("bob's", user=made.bob)
    made.service_row, made.service = made.make_key("service")
    _, made.theirs = made.make_key("theirs", tenant="other")
    made.rows(Tenant).filter(name="acme").update(keeps_texts=True)
    await asyncio.to_thread(made.start)
    await made.until_it_lists("qwen3:8b", key=made.service)
    made.calls = {}
    for name, key in {"bob": made.bobs, "service": made.service, "theirs": made.theirs}.items():
        made.calls[name] = await call(made, key, f"a canary of {name}")
    for name in ("bob", "service"):
        async with asyncio.timeout(PATIENCE):
            while not made.rows(StoredText).filter(pk=made.calls[name]).exists():
                await asyncio.sleep(0.02)
    return made


async def call(gateway, key, prompt):
    async with gateway.client(key) as client:
        body = {"model": "qwen3:8b", "prompt": prompt, "options": {"num_predict": 20}}
        answer = await client.post("/api/generate", json=body, headers={"user-agent": "their-app/1.0"})
    assert answer.status_code == 200, answer.text
    return (await gateway.record(answer.headers["x-request-id"], PATIENCE)).pk


async def got(gateway, path, key="", *, session="", **headers):
    if session:
        headers["cookie"] = f"sessionid={session}"
    async with gateway.client(key) as client:
        return await client.get(path, headers=headers)


async def found(gateway, key, query=""):
    answer = await got(gateway, f"/analytics/search{query}", key)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def documented(heading):
    page = (ROOT / "docs" / "usage.md").read_text()
    part = page.partition(f"`{heading}`:")[2].partition("\n\n")[0]
    return re.findall(r"`(\w+)`", part)


async def test_t1_a_key_sees_the_calls_of_its_user_or_its_own(gateway):
    expected = {gateway.alices: [], gateway.bobs: ["bob"], gateway.service: ["service"], gateway.theirs: ["theirs"]}
    for key, names in expected.items():
        ids = {str(gateway.calls[name]) for name in names}
        assert {each["id"] for each in await found(gateway, key)} == ids
        stats = (await got(gateway, "/analytics/stats", key)).json()
        assert stats["total"]["requests"] == len(ids)
        exported = await got(gateway, "/analytics/export", key)
        assert {each["id"] for each in exported.json()} == ids
        csv = (await got(gateway, "/analytics/export?format=csv", key)).text
        assert csv.count("\r\n") == 1 + len(ids)
        for text in (exported.text, csv):
            assert "canary" not in text


async def test_a_service_key_finds_itself_by_its_prefix_and_no_other(gateway):
    (result,) = await found(gateway, gateway.service, f"?key={gateway.service_row.prefix}")
    assert result["id"] == str(gateway.calls["service"])
    for query in (f"?key={gateway.bobs.split('_')[1]}", "?key=nobodys"):
        assert await found(gateway, gateway.service, query) == []


async def test_the_fields_are_those_of_the_docs(gateway):
    (result,) = await found(gateway, gateway.bobs)
    assert list(result) == documented("/analytics/search")
    stats = (await got(gateway, "/analytics/stats", gateway.bobs)).json()
    assert list(stats) == documented("/analytics/stats")
    assert list(stats["total"]) == documented("total")
    assert [{"model": "qwen3:8b", **stats["total"]}] == stats["by_model"]
    assert len(stats["by_day"]) == 7
    assert sum(day["requests"] for day in stats["by_day"]) == stats["total"]["requests"] == 1


async def test_a_result_tells_what_its_record_does(gateway):
    (result,) = await found(gateway, gateway.bobs)
    record = await gateway.record(str(gateway.calls["bob"]))
    assert result["timestamp"] == record.started_at.isoformat().replace("+00:00", "Z")[:23] + "Z"
    assert (result["user"], result["tenant"], result["key"]) == ("bob", "acme", "bob's")
    assert (result["model"], result["status_code"], result["outcome"]) == ("qwen3:8b", 200, "ok")
    assert (result["prompt_tokens"], result["completion_tokens"]) == (record.prompt_tokens, record.completion_tokens)
    assert (result["client_ip"], result["user_agent"]) == ("127.0.0.1", "their-app/1.0")
    assert (result["cost"], result["backend"], result["estimated"]) == (None, "one", False)
    assert result["duration_ms"] == record.total_us / 1000


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("?model=qwen3:8b", 1),
        ("?model=QWEN3:8B", 1),
        ("?model=llama3.2", 0),
        ("?start_time=2020-01-01&end_time=2020-02-01", 0),
        ("?start_time=2020-01-01T00:00:00Z", 1),
        ("?end_time=2020-01-01", 0),
        ("?limit=1", 1),
        ("?outcome=failures", 0),
        ("?prompt_search=CANARY&model=qwen3:8b&start_time=2020-01-01&limit=5", 1),
        ("?prompt_search=CANARY&model=llama3.2", 0),
        ("?prompt_search=CANARY&outcome=failures", 0),
        ("?prompt_search=canary+of+service", 0),
    ],
)
async def test_search_narrows_down(gateway, query, count):
    assert len(await found(gateway, gateway.bobs, query)) == count


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/analytics/search?limit=0", "limit"),
        ("/analytics/search?limit=1001", "limit"),
        ("/analytics/search?limit=x", "limit"),
        ("/analytics/search?start_time=yesterday", "start_time"),
        ("/analytics/search?end_time=2026-13-01", "end_time"),
        ("/analytics/search?outcome=odd", "outcome"),
        ("/analytics/search?page=7", "page"),
        ("/analytics/search?prompt_search=" + "x" * 201, "prompt_search"),
        ("/analytics/search?model=a%00b", "model"),
        ("/analytics/stats?start_time=2020-01-01&end_time=2026-01-01", "start_time"),
        ("/analytics/stats?start_time=2026-01-02&end_time=2026-01-01", "start_time"),
        ("/analytics/export?format=xlsx", "format"),
    ],
)
async def test_bad_questions_are_told_with_the_name_of_the_parameter(gateway, path, field):
    answer = await got(gateway, path, gateway.bobs)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


async def test_texts_come_to_their_key_and_each_look_is_audited(gateway):
    seen = gateway.rows(AuditEntry).filter(action=AuditEntry.Action.ACCESS)
    before = seen.count()
    (result,) = await found(gateway, gateway.bobs, "?prompt_search=canary")
    assert result["prompt"] == "a canary of bob"
    assert result["response_preview"]
    (entry,) = seen.order_by("pk")[before:]
    assert (entry.actor_id, entry.object_pk, entry.via) == (gateway.bob.pk, str(gateway.calls["bob"]), "api")
    assert entry.actor_name.startswith("key: ")
    assert (await found(gateway, gateway.service))[0]["prompt"] == "a canary of service"
    assert seen.count() == before + 2
    assert await found(gateway, gateway.theirs, "?prompt_search=canary") == []  # where nothing is stored
    assert (await found(gateway, gateway.theirs))[0]["prompt"] is None
    assert seen.count() == before + 2


async def test_t7_signed_in_one_sees_what_the_pages_show_and_no_text(gateway):
    seen = gateway.rows(AuditEntry).filter(action=AuditEntry.Action.ACCESS)
    before = seen.count()
    expected = {gateway.alice: {"bob", "service"}, gateway.bob: {"bob"}}
    for user, names in expected.items():
        session = sign_in(gateway, user)
        answer = await got(gateway, "/analytics/search", session=session)
        assert {each["id"] for each in answer.json()["results"]} == {str(gateway.calls[name]) for name in names}
        assert "canary" not in answer.text
        stats = (await got(gateway, "/analytics/stats", session=session)).json()
        assert stats["total"]["requests"] == len(names)
        page = await got(gateway, "/analytics", session=session, accept="text/html")
        assert page.status_code == 200
        assert "The newest calls" in page.text
        refused = await got(gateway, "/analytics/search?prompt_search=canary", session=session)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_needed")
        foreign = await got(gateway, "/analytics/stats?of=tenant-999", session=session)
        assert foreign.status_code == 404
    assert seen.count() == before


async def test_strangers_are_told_nothing_but_whether_it_works(gateway):
    for path in PATHS:
        for key in ("", "ogw_abcd1234_wrong"):
            answer = await got(gateway, path, key)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == ("invalid_key" if key else "missing_key")
    page = await got(gateway, "/analytics", accept="text/html")
    assert (page.status_code, page.headers["location"]) == (302, "/account/login/?next=/analytics")
    assert (await got(gateway, "/test")).json() == {"ok": True}
    assert (await got(gateway, "/test", "ogw_abcd1234_wrong")).json() == {"ok": True}
    told = (await got(gateway, "/test", gateway.bobs)).json()
    assert told == {"ok": True, "ready": True, "draining": False, "backends": {"up": 1, "all": 1}}


async def test_administrators_are_told_of_each_backend(gateway):
    root = make_person(gateway, "root")
    gateway.rows(type(root)).filter(pk=root.pk).update(is_staff=True, is_superuser=True)
    root.refresh_from_db()
    told = (await got(gateway, "/test", session=sign_in(gateway, root))).json()
    assert [(each["name"], each["state"]) for each in told["backend_states"]] == [("one", "up")]


async def test_a_place_in_the_network_is_a_key_here_too_but_lends_itself_to_nobody(gateway):
    with transaction.atomic(using=gateway.alias):
        rule = gateway.rows(IPRule).create(cidr="127.0.0.0/8", action="allow", acts_as=gateway.service_row)
    try:
        async with asyncio.timeout(PATIENCE):
            while (answer := await got(gateway, "/analytics/search")).status_code == 401:
                await asyncio.sleep(0.05)
        (result,) = answer.json()["results"]
        assert result["id"] == str(gateway.calls["service"])
        assert result["prompt"] is None  # a place is many people's
        assert (await got(gateway, "/analytics/search?prompt_search=canary")).status_code == 403
        assert (await got(gateway, "/analytics", accept="text/html")).status_code == 200
        for header in ({"origin": "https://evil.example"}, {"x-forwarded-for": "192.0.2.1"}):
            assert (await got(gateway, "/analytics/stats", **header)).status_code == 401
        assert json.loads((await got(gateway, "/analytics/stats", gateway.bobs)).text)["of"] == "bob in acme"
    finally:
        gateway.rows(IPRule).filter(pk=rule.pk).delete()


async def test_u8_a_real_call_priced_by_energy_is_recomputed_by_hand_from_its_page(gateway):
    gateway.rows(Price).create(
        model="llama3.2", input_nano=123_457, output_nano=7, gpu_second_nano=11, kwh_nano=299_999_999, watts=357,
        valid_from=timezone.now() - timedelta(days=1),
    )  # fmt: skip
    async with gateway.client(gateway.bobs) as client, asyncio.timeout(PATIENCE):
        while True:  # the price holds within a second
            answer = await client.post("/api/generate", json={"model": "llama3.2", "prompt": "x" * 999})
            record = await gateway.record(answer.headers["x-request-id"], PATIENCE)
            if record.price_id is not None:
                break
    gpu_us = record.load_us + record.prefill_us + record.decode_us
    assert gpu_us > 0
    page = await got(gateway, f"/requests/{record.pk}/", session=sign_in(gateway, gateway.bob))
    assert recomputed(page.text) == record.cost_nano > 0
    assert "It was the only backend in rotation" in page.text
