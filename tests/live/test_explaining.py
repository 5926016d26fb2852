"""“Explain” asked of running gateways: what the page says is what a call then gets."""

import asyncio
import json
import re
import sys
from datetime import timedelta
from html import unescape

import pytest
import pytest_asyncio
from django.utils import timezone

from proxy.models import ModelAlias
from tenants.models import ApiKey, IPRule, Limit, Tenant, User
from tests.live.admin_forms import Form
from tests.live.signed_in import make_person, sign_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30.0
OFFICE, CAFE = "203.0.113.9", "198.51.100.7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(TRUSTED_PROXIES="127.0.0.0/8")
    made.make_backend(shared_fake.url, name="gpu")
    _, made.ordinary = made.make_key()
    await asyncio.to_thread(made.start)
    await made.until_it_lists("llama3.2", key=made.ordinary)
    async with made.client() as made.visitor:
        yield made


@pytest.fixture(autouse=True)
def superuser(gateway, request):
    """One for each test: a person may ask twenty times a minute."""
    root = make_person(gateway, request.node.name[-100:])
    gateway.rows(User).filter(pk=root.pk).update(is_staff=True, is_superuser=True)
    gateway.visitor.cookies.clear()
    gateway.visitor.cookies.set("sessionid", sign_in(gateway, root))


async def page_says(gateway, key, address=OFFICE, model="llama3.2", endpoint="/api/chat"):
    """(status, code, the page) of an explanation."""
    form = Form((await gateway.visitor.get("/admin/explain/")).text).fields
    fields = {**form, "key": key, "address": address, "model": model, "endpoint": endpoint}
    page = (await gateway.visitor.post("/admin/explain/", data=fields, headers={"referer": gateway.url})).text
    told = unescape(re.sub(r"<[^>]+>", "", page.partition('id="told">')[2].partition("</h2>")[0]))
    if refused := re.match(r"The client gets (\d+) (\w+)", told):
        return int(refused[1]), refused[2], page
    return (200 if told.startswith("The call is answered") else told), "", page


async def call_gets(gateway, key, address=OFFICE, model="llama3.2", endpoint="/api/chat"):
    headers = {"x-forwarded-for": address, **({"authorization": f"Bearer {key}"} if key else {})}
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    async with gateway.client() as client:
        answer = await client.post(endpoint, json=body, headers=headers)
    return answer.status_code, answer.headers.get("x-gateway-error", "")


def revoke(gateway, key):
    gateway.rows(ApiKey).filter(pk=key.pk).update(revoked_at=timezone.now())


def expire(gateway, key):
    gateway.rows(ApiKey).filter(pk=key.pk).update(expires_at=timezone.now() + timedelta(seconds=0.5))


def close_tenant(gateway, key):
    gateway.rows(Tenant).filter(pk=key.tenant_id).update(enabled=False)


def limit(gateway, key, **fields):
    gateway.rows(Limit).create(scope="key", key=key, **fields)


# name → what is changed about the key (gateway, key), arguments of the call, status, code
CASES = {
    "nothing": (None, {}, 200, ""),
    "revoked": (revoke, {}, 401, "invalid_key"),
    "expired": (expire, {}, 401, "invalid_key"),
    "tenant off": (close_tenant, {}, 401, "invalid_key"),
    "rule of the key": (
        lambda g, key: g.rows(IPRule).create(cidr="203.0.113.0/24", action="deny", key=key), {}, 401, "invalid_key",
    ),
    "rule of the tenant": (
        lambda g, key: g.rows(IPRule).create(cidr="198.51.100.0/24", action="allow", tenant=key.tenant), {}, 401,
        "invalid_key",
    ),
    "right": (
        lambda g, key: g.rows(ApiKey).filter(pk=key.pk).update(may_infer=False), {}, 403, "endpoint_not_allowed",
    ),
    "model": (
        lambda g, key: g.rows(ApiKey).filter(pk=key.pk).update(models_allowed=["qwen3:*"]), {}, 404,
        "model_not_allowed",
    ),
    "no such model": (None, {"model": "nope"}, 404, "model_not_found"),
    "alias": (lambda g, key: g.rows(ModelAlias).create(pattern="nick", model="llama3.2"), {"model": "nick"}, 200, ""),
    "requests": (
        lambda g, key: limit(g, key, metric="requests", window="day", amount=0), {}, 429, "limit_requests",
    ),
    "tokens": (
        lambda g, key: limit(g, key, metric="tokens", window="seconds", window_seconds=60, amount=10), {}, 429,
        "limit_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_the_page_says_what_a_call_gets(gateway, name):
    change, arguments, status, code = CASES[name]
    row, key = gateway.make_key(name, tenant=f"tenant of {name}")
    async with asyncio.timeout(PATIENCE):  # until the key is known, and then the change
        while (await call_gets(gateway, key))[0] != 200:
            await asyncio.sleep(0.05)
        if change is not None:
            change(gateway, row)
        while (got := await call_gets(gateway, key, **arguments)) != (status, code):
            await asyncio.sleep(0.05)
    for typed in (row.prefix, key):
        *told, page = await page_says(gateway, typed, **arguments)
        assert tuple(told) == got
        assert key[13:40] not in page
    if status == 200:
        assert "gpu" in page


async def test_the_page_knows_what_was_used_a_moment_ago(gateway):
    row, key = gateway.make_key("limited", tenant="limited")
    limit(gateway, row, metric="requests", window="month", amount=3)
    async with asyncio.timeout(PATIENCE):
        while "Limit of 3 requests" not in (await page_says(gateway, row.prefix))[2]:
            await asyncio.sleep(0.05)
    for used in range(3):
        page = unescape((await page_says(gateway, row.prefix))[2])
        assert f"used: {used}" in page
        assert f"left: {3 - used}" in page
        assert (await call_gets(gateway, key))[0] == 200
    assert (await page_says(gateway, row.prefix))[:2] == (429, "limit_requests") == await call_gets(gateway, key)


async def test_the_page_says_whose_answers_the_key_may_get_from_the_cache(gateway):
    row, _ = gateway.make_key("cached", tenant="cached")
    gateway.rows(ApiKey).filter(pk=row.pk).update(cache_policy="deterministic")
    async with asyncio.timeout(PATIENCE):
        while "kept for" not in (page := (await page_says(gateway, row.prefix))[2]):
            await asyncio.sleep(0.05)
    text = unescape(re.sub(r"<[^>]+>", "", page))
    assert "A call with temperature 0 or a seed that was asked before is answered from the cache, in 60 min" in text
    assert "answers of: its tenant" in text
    assert "kept for" not in (await page_says(gateway, row.prefix, endpoint="/api/show"))[2]


async def test_the_command_beside_a_running_gateway_tells_as_much_as_the_tables_do(gateway):
    row, key = gateway.make_key("told by the command", tenant="commanded")
    gateway.rows(IPRule).create(cidr="198.51.100.0/24", action="allow", key=row)

    async def told(address):
        command = [sys.executable, "manage.py", "explain", "--key", "-", "--model", "llama3.2", "--json", "--address"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, address, env=gateway.env, stdin=pipe, stdout=pipe)
        out, _ = await process.communicate(key.encode() + b"\n")
        return json.loads(out)

    async with asyncio.timeout(PATIENCE):
        while (await call_gets(gateway, key))[0] != 401:
            await asyncio.sleep(0.05)
        while (passes := await told(CAFE))["backend"] != "gpu":  # until a worker has reported on it
            await asyncio.sleep(0.2)
    assert (passes["status"], passes["code"]) == (None, "")
    refused = await told(OFFICE)
    assert (refused["status"], refused["code"], refused["cause"]) == (401, "invalid_key", "key_ip_denied")
    assert key[13:] not in json.dumps([passes, refused])
