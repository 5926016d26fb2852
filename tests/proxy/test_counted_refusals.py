"""On which key's page a refusal is told, where the key itself was not sent."""

import pytest
import pytest_asyncio

from proxy.consumers import GatewayConsumer
from proxy.live.chat import OwnCall
from proxy.snapshot import IPRuleRow
from tests.cache.house import house

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACTING = IPRuleRow("127.0.0.1/32", "allow", acts_as_id=1)
NO_RIGHT = {"rights": (False, True, False, False, False)}


@pytest_asyncio.fixture(loop_scope="module")
async def home(tmp_path):
    async with house([], tmp_path) as made:
        yield made


async def refused(home, consumer, *headers):
    """(code, prefix) of what was counted for one call without a key."""
    told = []

    async def receive():
        return {"type": "http.request", "body": b'{"model": "m", "messages": []}', "more_body": False}

    async def send(event):
        told.append(event)

    scope = {
        "type": "http", "method": "POST", "path": "/api/chat", "raw_path": b"/api/chat", "client": ("127.0.0.1", 1),
        "headers": list(headers),
    }  # fmt: skip
    await consumer(scope, receive, send)
    assert told[0]["status"] in (401, 403)
    [((_, code, prefix), count)] = home.runtime.worker_reports._refusals.items()
    assert count == 1
    return code, prefix


@pytest.mark.parametrize(
    ("changed", "headers", "code"),
    [
        (NO_RIGHT, [(b"host", b"localhost")], "endpoint_not_allowed"),
        (NO_RIGHT, [(b"host", b"localhost"), (b"authorization", b"Bearer not-needed")], "endpoint_not_allowed"),
        ({}, [(b"host", b"made-up.example")], "host_not_known"),
        ({}, [(b"host", b"localhost"), (b"origin", b"https://evil.example")], "origin_not_allowed"),
    ],
)
async def test_what_a_network_is_refused_is_told_on_the_page_of_the_key_it_acts_as(home, changed, headers, code):
    home.use(ip_rules=(ACTING,))
    home.change_key(1, **changed)
    assert await refused(home, GatewayConsumer(home.runtime), *headers) == (code, home.rows[1].prefix)


@pytest.mark.parametrize(
    ("changed", "rules", "code"),
    [
        (NO_RIGHT, (), "endpoint_not_allowed"),
        ({}, (IPRuleRow("127.0.0.1/32", "deny", key_id=1),), "key_ip_denied"),
    ],
)
async def test_what_the_playground_is_refused_is_told_on_the_page_of_its_key(home, changed, rules, code):
    home.use(ip_rules=rules)
    home.change_key(1, **changed)
    assert await refused(home, OwnCall(home.runtime, 1), (b"host", b"x")) == (code, home.rows[1].prefix)


async def test_who_sends_a_key_that_nobody_has_is_nobody_though_their_network_acts_as_a_key(home):
    home.use(ip_rules=(ACTING,))
    unknown = home.keys["two"]
    home.use(digests={})
    code = await refused(home, GatewayConsumer(home.runtime), (b"host", b"x"), (b"authorization", b"Bearer " + unknown))
    assert code == ("unknown_key", "")
