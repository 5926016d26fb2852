"""Rows I5 and I6 with real servers: the rules for all hold at every entrance, and nobody is locked out for good."""

import asyncio
import json
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import httpx
import pytest
import pytest_asyncio
from django.utils import timezone
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from proxy.models import IPRuleUse
from tenants.models import IPRule
from tests.live.seen import no_calls
from tests.live.signed_in import make_person, sign_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30.0
OFFICE, OFFICE_MAPPED, CAFE, SIX = "203.0.113.9", "::ffff:203.0.113.9", "198.51.100.7", "2001:db8::7"
EVERYBODY = (OFFICE, OFFICE_MAPPED, CAFE, SIX)
CHAT = json.dumps({"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "hi"}]})
HTML = {"accept": "text/html"}
# name → method, path, headers, body, status for those who may come
ENTRANCES = {
    "root": ("GET", "/", {}, None, 200),
    "listing": ("GET", "/api/tags", {}, None, 200),
    "listing of OpenAI": ("GET", "/v1/models", {}, None, 200),
    "call": ("POST", "/api/chat", {}, CHAT, 200),
    "key in path": ("GET", "/k/{key}/api/version", {}, None, 200),
    "root with a key in path": ("GET", "/k/{key}/", {}, None, 200),
    "preflight": (
        "OPTIONS", "/api/chat",
        {"origin": "https://app.example.com", "access-control-request-method": "POST"}, None, 204,
    ),
    "home": ("GET", "/", HTML, None, 302),
    "sign-in": ("GET", "/account/login/", HTML, None, 200),
    "admin": ("GET", "/admin/login/", HTML, None, (200, 302)),
    "static file": ("GET", "/static/gateway/gateway.css", {}, None, 200),
    "no page": ("GET", "/nothing/", HTML, None, 404),
    "management API": ("GET", "/manage/api/nothing", {}, None, 404),
    "metrics": ("GET", "/metrics", {}, None, 200),
    "readiness": ("GET", "/readyz", {}, None, 200),
    "live page": ("WS", "/ws/live", {}, None, 101),
}  # fmt: skip
# name → (rules: network, action, seconds until it expires), who may come
RULES = {
    "none": ([], EVERYBODY),
    "deny all": ([("0.0.0.0/0", "deny", None), ("::/0", "deny", None)], ()),
    "deny all of IPv4": ([("0.0.0.0/0", "deny", None)], (SIX,)),
    "allow list": ([("203.0.113.0/24", "allow", None)], (OFFICE, OFFICE_MAPPED)),
    "allow list of IPv6": ([("2001:db8::/32", "allow", None)], (SIX,)),
    "mapped deny": ([("::ffff:203.0.113.0/120", "deny", None)], (CAFE, SIX)),
    "mapped allow": ([("::ffff:203.0.113.9/128", "allow", None)], (OFFICE, OFFICE_MAPPED)),
    "exception to a deny": (
        [("203.0.113.0/24", "deny", None), ("203.0.113.9/32", "allow", None)], (OFFICE, OFFICE_MAPPED)
    ),
    "expired deny": ([("0.0.0.0/0", "deny", -60), ("::/0", "deny", -60)], EVERYBODY),
    "expired allow": ([("203.0.113.0/24", "allow", -60)], EVERYBODY),
    "deny that will expire": ([("203.0.113.0/24", "deny", 3600)], (CAFE, SIX)),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(make_shared_gateway, shared_fake):
    """A gateway behind a proxy on this machine: who calls is what X-Forwarded-For says."""
    made = await started(make_shared_gateway, shared_fake, TRUSTED_PROXIES="127.0.0.0/8")
    async with made.client() as made.visitor:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct(make_shared_gateway, shared_fake):
    """A gateway that believes no proxy."""
    made = await started(make_shared_gateway, shared_fake)
    async with made.client() as made.visitor:
        yield made


async def started(make, fake, **env):
    made = make(METRICS_NETWORKS="0.0.0.0/0,::/0", CORS_ORIGINS="https://app.example.com", **env)
    made.make_backend(fake.url)
    _, made.key = made.make_key(may_be_in_path=True)
    made.session = sign_in(made, make_person(made, "ann", acme="owner"))
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", key=made.key)


@pytest.fixture(autouse=True)
def no_rules_afterwards(request):
    yield
    for name in ("behind", "direct"):
        if name in request.fixturenames:
            request.getfixturevalue(name).rows(IPRule).all().delete()


def from_address(address):
    return {"x-forwarded-for": address} if address else {}


async def visit(gateway, entrance, address=None):
    """The status that somebody gets."""
    method, path, headers, body, _ = ENTRANCES[entrance]
    headers = {**headers, **from_address(address)}
    if method == "WS":
        return await handshake(gateway, address)
    if path.startswith(("/api", "/v1")) and method != "OPTIONS":
        headers["authorization"] = f"Bearer {gateway.key}"
    path = path.format(key=gateway.key)
    return (await gateway.visitor.request(method, path, headers=headers, content=body)).status_code


def socket(gateway, address=None):
    headers = {"cookie": f"sessionid={gateway.session}", **from_address(address)}
    return connect(f"ws://127.0.0.1:{gateway.port}/ws/live", additional_headers=headers, origin=gateway.url, proxy=None)


async def handshake(gateway, address=None):
    try:
        async with socket(gateway, address):
            return 101
    except InvalidStatus as exc:
        return exc.response.status_code


async def until(gateway, entrance, status, address=None):
    began = time.monotonic()
    while (found := await visit(gateway, entrance, address)) != status:
        assert time.monotonic() - began < PATIENCE, f"{found} instead of {status} after {PATIENCE} s"
        await asyncio.sleep(0.02)


async def in_force(gateway, number, rules):
    """Puts rules in the place of those there are, and waits until they are in force: a canary shows it."""
    canary = f"192.0.2.{number + 1}"
    gateway.rows(IPRule).all().delete()
    await until(gateway, "root", 200, canary)
    made = [
        IPRule(cidr=cidr, action=action, expires_at=seconds and timezone.now() + timedelta(seconds=seconds))
        for cidr, action, seconds in [*rules, (f"{canary}/32", "deny", None)]
    ]
    gateway.rows(IPRule).bulk_create(made)
    await until(gateway, "root", 403, canary)


async def surprises(gateway, welcome):
    """Where somebody did not get what they should."""
    found = {}
    for entrance, (*_, passes) in ENTRANCES.items():
        for address in EVERYBODY:
            expected = passes if address in welcome else 403
            status = await visit(gateway, entrance, address)
            if status not in (expected if isinstance(expected, tuple) else (expected,)):
                found[entrance, address] = f"{status} instead of {expected}"
    return found


@pytest.mark.parametrize("kind", RULES)
async def test_i6_the_rules_for_all_hold_at_every_entrance(behind, shared_fake, kind):
    rules, welcome = RULES[kind]
    await in_force(behind, list(RULES).index(kind), rules)
    with nullcontext() if welcome else no_calls(shared_fake):
        assert await surprises(behind, welcome) == {}
    # Says that the process runs, to everybody: an orchestrator that is refused restarts it.
    async with behind.client() as client:
        for address in EVERYBODY:
            answer = await client.get("/livez", headers=from_address(address))
            assert (answer.status_code, answer.text) == (200, "ok")


async def test_i6_rules_of_tenants_and_keys_are_about_calls_alone(behind):
    await in_force(behind, 0, [])
    behind.rows(IPRule).create(cidr="203.0.113.0/24", action="deny", tenant=behind.tenant())
    await until(behind, "call", 401, OFFICE)
    assert [await visit(behind, entrance, OFFICE) for entrance in ("sign-in", "live page")] == [200, 101]


async def test_i6_an_open_live_page_ends_when_a_rule_shuts_its_viewer_out(behind):
    await in_force(behind, 0, [])
    async with socket(behind, OFFICE) as page:
        await page.recv()
        began = time.monotonic()
        behind.rows(IPRule).create(cidr="203.0.113.0/24", action="deny")
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await page.recv()
        print(f"ended after {time.monotonic() - began:.1f} s")


async def test_i6_the_machine_itself_is_the_way_back_in(direct):
    """Pages yes, calls no; not through a proxy that lends its place to everybody; not where loopback is named."""
    direct.rows(IPRule).create(cidr="0.0.0.0/0", action="deny")
    await until(direct, "call", 403)
    pages = ("home", "sign-in", "admin", "metrics", "readiness", "live page")
    assert [await visit(direct, entrance) for entrance in pages] == [302, 200, 302, 200, 200, 101]
    assert {await visit(direct, entrance, "127.0.0.1") for entrance in pages} == {403}
    assert {await visit(direct, entrance) for entrance in ("root", "listing", "key in path", "preflight")} == {403}
    direct.rows(IPRule).create(cidr="127.0.0.0/8", action="deny")
    await until(direct, "sign-in", 403)
    assert {await visit(direct, entrance) for entrance in pages} == {403}


async def test_i6_a_shell_is_the_way_back_in_for_the_rest(direct):
    direct.rows(IPRule).create(cidr="127.0.0.0/8", action="deny")
    await until(direct, "sign-in", 403)
    async with direct.client() as client:
        assert "manage.py remove_ip_rule" in (await client.get("/account/login/")).text
    command = [sys.executable, "manage.py", "remove_ip_rule", "127.0.0.0/8"]
    process = await asyncio.create_subprocess_exec(*command, env=direct.env, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "Removed: deny 127.0.0.0/8.\n")
    await until(direct, "sign-in", 200)


async def test_i6_what_a_rule_decided_is_counted_apart_from_the_rule(behind):
    await in_force(behind, 0, [])
    office = behind.rows(IPRule).create(cidr="203.0.113.0/24", action="allow", note="office")
    await until(behind, "root", 403, CAFE)
    revision = behind.rows(IPRule).get(pk=office.pk)
    for entrance in ("call", "sign-in", "live page", "listing"):
        await visit(behind, entrance, OFFICE)
    began = time.monotonic()
    while not (use := behind.rows(IPRuleUse).filter(rule_id=office.pk).first()) or use.hits < 4:
        assert time.monotonic() - began < PATIENCE, f"{use} after {PATIENCE} s"
        await asyncio.sleep(0.05)
    print(f"told after {time.monotonic() - began:.1f} s")
    assert use.hits == 4  # a page's static files and rechecks were not asked for
    assert abs(timezone.now() - use.last_at) < timedelta(seconds=PATIENCE)
    assert behind.rows(IPRule).get(pk=office.pk) == revision


# I5: callers without an address

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--log-level", "warning", "gateway_site.asgi:application", "--uds"],
    "daphne": ["-m", "daphne", "-v", "0", "gateway_site.asgi:application", "-u"],
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("trusted", ["", "unix"])
async def test_i5_a_unix_socket_has_no_address_unless_it_is_said_to_be_a_proxys(
    make_shared_gateway, shared_fake, server, trusted
):
    made = make_shared_gateway(TRUSTED_PROXIES=trusted, METRICS_NETWORKS="203.0.113.0/24")
    made.make_backend(shared_fake.url)
    _, key = made.make_key()
    path = made.directory / "s"
    made.command = lambda: [*SERVERS[server], str(path)]
    await asyncio.to_thread(made.start, wait=False)
    headers = {"authorization": f"Bearer {key}", "host": "localhost"}
    async with httpx.AsyncClient(
        base_url="http://localhost", transport=httpx.AsyncHTTPTransport(uds=str(path)), headers=headers, timeout=30
    ) as client:

        async def got(path, address=""):
            return (await client.get(path, headers=from_address(address))).status_code

        async def becomes(status, path, address=""):
            began = time.monotonic()
            while True:
                try:
                    if (found := await got(path, address)) == status:
                        return
                except httpx.TransportError as exc:
                    found = exc
                assert time.monotonic() - began < 3 * PATIENCE, f"{found!r} instead of {status}\n{made.log()[-2000:]}"
                await asyncio.sleep(0.05)

        pages = ("/account/login/", "/api/tags", "/")
        await becomes(200, "/api/tags")
        # Without rules everybody may come, also who has no address.
        assert [await got(page) for page in pages] == [200, 200, 200]
        assert await got("/readyz") == 404
        made.rows(IPRule).create(cidr="203.0.113.0/24", action="allow")
        await becomes(403, "/api/tags", CAFE)
        assert [await got(page) for page in (*pages, "/readyz")] == [403, 403, 403, 403]
        assert [await got(page, OFFICE) for page in pages] == ([200, 200, 200] if trusted else [403, 403, 403])
        assert await got("/readyz", OFFICE) == (200 if trusted else 403)
        assert await got("/livez") == 200
        made.rows(IPRule).all().delete()
        made.rows(IPRule).create(cidr="203.0.113.0/24", action="deny")
        await becomes(200 if trusted else 403, "/api/tags", CAFE)
        assert await got("/api/tags") == 403
        assert await got("/api/tags", OFFICE) == 403
    await asyncio.to_thread(made.kill)
