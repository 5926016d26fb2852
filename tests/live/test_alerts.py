"""Alerts of limits through whole gateways, to a real mail server and a real web server: each told once."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from proxy.alerts.signature import HEADER
from proxy.credentials import seal
from proxy.models import Delivery, LimitAlert, Webhook
from tenants.models import Limit, Membership, Role, User
from tests.live.receivers import HookSink, MailSink
from tests.redis_server import RedisServer

SECRET = "whs_of_the_tests"
# Generous: what is found within a second or two elsewhere may take long on a busy machine.
CEILING = 60


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
async def sinks():
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(HookSink()), await stack.enter_async_context(MailSink())


@pytest.fixture
def prepared(make_gateway, fake, sinks, settings):
    """prepared(workers, **env): a gateway with a tenant, its owner, a webhook and ten requests a month."""

    def prepare(workers=1, database_url="", **env):
        hook, mail = sinks
        env = {"WEBHOOK_NETWORKS": "127.0.0.0/8", "EMAIL_URL": f"smtp://127.0.0.1:{mail.port}", **env}
        gateway = make_gateway(workers=workers, database_url=database_url, **env)
        gateway.make_backend(fake.url, slots=64)
        gateway.key_row, gateway.key = gateway.make_key()
        acme = gateway.tenant()
        owner = gateway.rows(User).create(username="alice", email="alice@example.com")
        gateway.rows(Membership).create(tenant=acme, user=owner, role=Role.OWNER)
        settings.SECRET_KEY = gateway.env["SECRET_KEY"]
        gateway.rows(Webhook).create(tenant=acme, url=hook.url, secret_encrypted=seal(SECRET))
        gateway.limit = gateway.rows(Limit).create(
            scope="tenant", tenant=acme, metric="requests", window="month", amount=10, alert=True
        )
        return gateway

    return prepare


async def call(gateway, times):
    async with gateway.client(gateway.key) as client:
        for _ in range(times):
            await client.post("/api/chat", json={
                "model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "hi"}],
                "options": {"num_predict": 3},
            })  # fmt: skip


async def until(condition, what):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < CEILING, what
        await asyncio.sleep(0.05)
    return time.monotonic() - started


def all_sent(gateway, count):
    rows = gateway.rows(Delivery)
    return lambda: rows.filter(state="sent").count() >= count and not rows.filter(state="pending").exists()


@pytest.mark.timeout(300)
async def test_four_workers_tell_each_threshold_once_and_a_restart_does_not_tell_it_again(
    prepared, sinks, redis_server
):
    hook, mail = sinks
    gateway = prepared(4, REDIS_URL=redis_server.url, REDIS_PATIENCE_SECONDS="10")
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    await call(gateway, 8)
    took = await until(lambda: hook.told(80), gateway.log())
    print(f"80 % told after {took:.1f} s")
    assert not hook.told(100)
    redis_server.kill()
    await call(gateway, 12)  # of which some are refused: the workers count alone now
    took = await until(lambda: hook.told(100), gateway.log())
    print(f"100 % told after {took:.1f} s, with Redis away")
    await until(all_sent(gateway, 4), gateway.log())
    # Another process takes the duty over, that knows nothing but what is written down.
    await asyncio.to_thread(gateway.stop)
    gateway.workers = 1
    redis_server.start()
    await asyncio.to_thread(gateway.start)
    await another_alert(gateway, hook)
    assert [len(hook.told(threshold)) for threshold in (80, 100)] == [1, 1]
    assert len(mail.to("alice@example.com")) == 4
    assert gateway.rows(LimitAlert).count() == 4
    assert "Traceback" not in gateway.log()


async def another_alert(gateway, hook):
    """A limit that is crossed from the start: when it is told, everything else has been looked at, too."""
    row = gateway.rows(Limit).create(
        scope="key", key=gateway.key_row, metric="requests", window="month", amount=1, alert=True
    )
    await until(lambda: len(hook.posts) >= 4, gateway.log())
    await until(all_sent(gateway, 8), gateway.log())
    ours = {post.json["limit"]["id"] for post in hook.posts}
    assert ours == {row.pk, gateway.limit.pk}
    hook.posts = [post for post in hook.posts if post.json["limit"]["id"] != row.pk]


@pytest.mark.timeout(300)
@pytest.mark.postgres
async def test_on_postgresql_four_workers_without_redis_tell_each_threshold_once(prepared, sinks, postgres_url):
    hook, mail = sinks
    gateway = prepared(4, postgres_url)
    gateway.rows(Limit).filter(pk=gateway.limit.pk).update(amount=4)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    # Over the limit, because each worker counts for itself: each of them is full and says so.
    await asyncio.gather(*(call(gateway, 4) for _ in range(6)))
    await until(all_sent(gateway, 4), gateway.log())
    await another_alert(gateway, hook)
    assert [len(hook.told(threshold)) for threshold in (80, 100)] == [1, 1]
    assert len(mail.to("alice@example.com")) == 4
    assert gateway.rows(LimitAlert).count() == 4


async def test_what_is_told_says_which_limit_and_is_signed(prepared, sinks):
    hook, mail = sinks
    gateway = prepared()
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    await call(gateway, 10)
    await until(all_sent(gateway, 4), gateway.log())
    post = hook.told(100)[0]
    said = post.json
    assert post.path == "/hook?of=tests"
    assert post.headers["host"] == f"127.0.0.1:{hook.port}"
    assert post.headers["content-type"] == "application/json"
    assert (said["event"], said["used"], said["limit"]["amount"]) == ("limit.used", 10, 10)
    assert (said["limit"]["scope"], said["limit"]["tenant"], said["limit"]["metric"]) == ("tenant", "acme", "requests")
    assert said["id"] == post.headers["x-gateway-delivery"]
    assert signed_by_the_documented_rule(post.headers[HEADER], post.body)
    text = next(text for text in mail.to("alice@example.com") if "100 %" in text)
    assert "10 requests per month for the tenant acme" in text.replace("=\n", "").replace("\n ", " ")
    assert SECRET not in gateway.log()
    assert "hi" not in str(said)


def signed_by_the_documented_rule(header, body):
    import hashlib
    import hmac

    at, said = (part.partition("=")[2] for part in header.split(","))
    assert abs(time.time() - int(at)) < 600
    return said == hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


async def test_what_is_refused_is_tried_again_until_it_is_taken(prepared, sinks):
    hook, mail = sinks
    hook.answers += [500, 302]
    hook.headers = b"location: http://127.0.0.1:1/elsewhere\r\n"
    mail.refuses = True
    gateway = prepared()
    gateway.rows(Limit).filter(pk=gateway.limit.pk).update(amount=1)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    await call(gateway, 1)
    await until(lambda: len(hook.posts) >= 2, gateway.log())
    mail.refuses = False
    await until(all_sent(gateway, 4), gateway.log())
    attempts = sorted(gateway.rows(Delivery).exclude(webhook=None).values_list("attempts", flat=True))
    assert sum(attempts) == 4  # two of them in vain
    assert len(hook.posts) == 4
    assert len({post.json["id"] for post in hook.posts}) == 2  # a repetition has the number of the first
    assert len(mail.to("alice@example.com")) == 2


async def test_a_private_target_is_refused_unless_its_network_is_allowed(prepared, sinks):
    hook, _ = sinks
    gateway = prepared(WEBHOOK_NETWORKS="10.0.0.0/8")
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    await call(gateway, 8)
    hooks = gateway.rows(Delivery).exclude(webhook=None)
    await until(lambda: hooks.exclude(outcome="").exists(), gateway.log())
    assert "private address" in hooks.first().outcome
    assert hook.posts == []


async def test_a_budget_that_refuses_is_told_though_what_is_left_is_not_nothing(prepared, sinks):
    """Of a token limit something is left that no call fits into: for those who call it is used up."""
    hook, _ = sinks
    gateway = prepared()
    gateway.rows(Limit).filter(pk=gateway.limit.pk).update(metric="tokens", amount=100)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    async with gateway.client(gateway.key) as client:
        while True:
            answer = await client.post("/api/generate", json={
                "model": "llama3.2", "prompt": "hi", "stream": False, "options": {"num_predict": 9},
            })  # fmt: skip
            if answer.status_code == 429:
                break
        await until(lambda: hook.told(80), gateway.log())
        while not hook.told(100):
            await client.post("/api/generate", json={
                "model": "llama3.2", "prompt": "hi", "stream": False, "options": {"num_predict": 60},
            })  # fmt: skip
            await asyncio.sleep(0.2)
    assert 80 <= hook.told(100)[0].json["used"] < 100
