"""The live page and its WebSocket: who sees which calls, who may end them, and what several workers make of it."""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from contextlib import asynccontextmanager

import psutil
import pytest
import pytest_asyncio
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from proxy.models import Backend
from tenants.models import Membership, User
from tests.live.signed_in import make_person, sign_in
from tests.live.test_control import begun
from tests.redis_server import RedisServer

PATIENCE = 30.0
WORKERS = 4

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(**fields):
    messages = [{"role": "user", "content": "a prompt that is nobody's business"}]
    return {"model": "llama3.2", "messages": messages, "options": {"num_predict": 30_000}, **fields}


class Page:
    """The socket of one open page."""

    def __init__(self, socket):
        self.socket = socket
        self.said = []  # everything but pictures
        self.raw = ""

    async def next(self):
        self.raw = await self.socket.recv()
        message = json.loads(self.raw)
        if message["type"] != "picture":
            self.said.append(message)
        return message

    async def until(self, condition):
        """The first picture that fulfils a condition."""
        last = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    message = await self.next()
                    if message["type"] == "picture":
                        last = message
                        if condition(message):
                            return message
        except TimeoutError:
            raise AssertionError(f"no such picture within {PATIENCE} s; the last was {last}") from None

    async def shows(self, *keys):
        """The calls on the page, once they are exactly those of some keys."""
        picture = await self.until(lambda picture: sorted(row["key_name"] for row in picture["calls"]) == sorted(keys))
        return {row["key_name"]: row for row in picture["calls"]}

    async def cancel(self, call_id):
        """What the page is told to its wish."""
        before = len(self.said)
        await self.socket.send(json.dumps({"type": "cancel", "call": call_id}))
        async with asyncio.timeout(PATIENCE):
            while len(self.said) == before:
                await self.next()
        return self.said[-1]

    async def closed(self):
        """The code that the socket is closed with."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await self.next()
                except ConnectionClosed as exc:
                    return exc.rcvd.code if exc.rcvd else None


def open_socket(gateway, session="", path="/ws/live", **options):
    options.setdefault("origin", gateway.url)
    headers = {"Cookie": f"sessionid={session}"} if session else {}
    url = gateway.url.replace("http:", "ws:") + path
    return connect(url, additional_headers=headers, proxy=None, **options)


@asynccontextmanager
async def page_of(gateway, user):
    async with open_socket(gateway, sign_in(gateway, user)) as socket:
        yield Page(socket)


@asynccontextmanager
async def stream(gateway, key, **fields):
    """(id of the call, its lines), begun."""
    async with gateway.client(key) as client:
        answer = await begun(client, chat(**fields))
        try:
            lines = answer.aiter_lines()
            await anext(lines)
            yield answer.headers["x-request-id"], lines
        finally:
            await answer.aclose()


async def last_line(lines):
    last = ""
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            last = line
    return json.loads(last)


def seen_by(fake, call_id):
    [seen] = [call for call in fake.calls if call.header("x-request-id") == call_id]
    return seen


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.05)


def permit(gateway, person, codename):
    permission = Permission.objects.using(gateway.alias).get(codename=codename)
    gateway.rows(User.user_permissions.through).create(user=person, permission=permission)


class Cast:
    """Alice owns a tenant, Bob is on her team, Vera only sees its usage, Charlie owns another; root and Stan are staff.

    The n-th of a gateway, so that no test meets the people of another.
    """

    def __init__(self, gateway, number=0):
        self.tenant, other = f"acme {number}", f"other {number}"
        self.alice = make_person(gateway, f"alice{number}", **{self.tenant: "owner"})
        self.bob = make_person(gateway, f"bob{number}", **{self.tenant: "member"})
        self.vera = make_person(gateway, f"vera{number}", **{self.tenant: "viewer"})
        self.charlie = make_person(gateway, f"charlie{number}", **{other: "owner"})
        self.root, self.stan = make_person(gateway, f"root{number}"), make_person(gateway, f"stan{number}")
        gateway.rows(User).filter(pk=self.root.pk).update(is_staff=True, is_superuser=True)
        gateway.rows(User).filter(pk=self.stan.pk).update(is_staff=True)
        self.keys = {
            name: gateway.make_key(f"{name}'s key", tenant, user=user)[1]
            for name, tenant, user in (
                ("alice", self.tenant, self.alice), ("bob", self.tenant, self.bob), ("charlie", other, self.charlie)
            )
        }  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake(shared_fake):
    """Its streams go on until they are ended."""
    shared_fake.scheduler.slots = 64
    shared_fake.faults(path="/api/chat", model="llama3.2", infinite=True, tokens_per_second=20)
    return shared_fake


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fake):
    made = make_shared_gateway()
    made.make_backend(fake.url, slots=64)
    made.casts = itertools.count(1)
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(loop_scope="module")
async def cast(gateway):
    """New people, whose keys are in force."""
    cast = Cast(gateway, next(gateway.casts))
    async with gateway.client(cast.keys["charlie"]) as client, asyncio.timeout(PATIENCE):
        while (await client.get("/api/version")).status_code != 200:
            await asyncio.sleep(0.05)
    return cast


async def test_t13_strangers_and_foreign_pages_get_no_socket(gateway, cast):
    session = sign_in(gateway, cast.alice)
    refused = {
        "no session": {},
        "a session that does not exist": {"session": "x" * 32},
        "a foreign page": {"session": session, "origin": "https://evil.example"},
        "a page on another port of this host": {"session": session, "origin": "http://127.0.0.1:1"},
        "a page of a file": {"session": session, "origin": "null"},
        "no page at all": {"session": session, "origin": None},
        "another path": {"session": session, "path": "/ws/other"},
    }
    for who, options in refused.items():
        with pytest.raises(InvalidStatus) as caught:
            async with open_socket(gateway, **options):
                raise AssertionError(who)
        assert caught.value.response.status_code == 403, who
    async with open_socket(gateway, session) as socket:
        assert json.loads(await socket.recv())["type"] == "picture"
    assert "Traceback" not in gateway.log()


async def test_t13_everybody_sees_what_is_theirs_and_no_more(gateway, cast):
    everything = ("alice's key", "bob's key", "charlie's key")
    sees = {
        cast.alice: everything[:2], cast.bob: ("bob's key",), cast.vera: everything[:2],
        cast.charlie: ("charlie's key",), cast.root: everything, cast.stan: (),
    }  # fmt: skip
    may_end = {cast.alice: everything[:2], cast.bob: ("bob's key",), cast.charlie: ("charlie's key",)}
    may_end[cast.root] = everything
    async with (
        stream(gateway, cast.keys["alice"]), stream(gateway, cast.keys["bob"]), stream(gateway, cast.keys["charlie"])
    ):  # fmt: skip
        for person, keys in sees.items():
            async with page_of(gateway, person) as page:
                rows = await page.shows(*keys)
                picture = json.loads(page.raw)
                assert {name for name, row in rows.items() if row["may_end"]} == set(may_end.get(person, ())), person
                assert (picture["backends"] is not None) == (person == cast.root)
                for secret in cast.keys.values():
                    assert secret.split("_")[2] not in page.raw
                assert "nobody's business" not in page.raw


async def test_t1_staff_see_the_calls_of_all_and_the_backends_by_permission(gateway, cast):
    async with (
        stream(gateway, cast.keys["alice"]), stream(gateway, cast.keys["charlie"]), page_of(gateway, cast.stan) as page
    ):  # fmt: skip
        await page.shows()
        permit(gateway, cast.stan, "view_backend")
        await page.until(lambda picture: picture["backends"] is not None and picture["calls"] == [])
        permit(gateway, cast.stan, "view_dailyusage")
        rows = await page.shows("alice's key", "charlie's key")
        assert not any(row["may_end"] for row in rows.values())
        assert (await page.cancel(rows["alice's key"]["id"]))["why"] == "Your role does not allow to cancel this call."


async def test_a_page_shows_how_each_call_gets_on(gateway, cast, fake):
    away = gateway.make_backend("http://127.0.0.1:1", "away", slots=1)
    gateway.rows(Backend).filter(name="one").update(slots=1)
    async with page_of(gateway, cast.root) as page:
        picture = await page.until(
            lambda picture: (
                [(row["name"], row["state"], row["slots"]) for row in picture["backends"]]
                == [("away", "down", 1), ("one", "up", 1)]
            )
        )
        assert picture["calls"] == []
        async with stream(gateway, cast.keys["alice"]) as (call_id, _), gateway.client(cast.keys["bob"]) as waiting:
            second = asyncio.create_task(waiting.post("/api/chat", json=chat()))
            picture = await page.until(
                lambda picture: (
                    {row["phase"] for row in picture["calls"]} == {"streaming", "line"}
                    and all(row["rate"] for row in picture["calls"] if row["phase"] == "streaming")
                )
            )
            first, waits = picture["calls"]
            assert first["id"] == call_id
            assert (first["model"], first["tenant"], first["backend"]) == ("llama3.2", cast.tenant, "one")
            assert first["tokens"] > 0
            assert 10 < first["rate"] < 40
            assert waits["tokens"] == 0
            one = picture["backends"][1]
            assert (one["state"], one["in_flight"], one["slots"], one["warm"]) == ("up", 1, 1, ["llama3.2:latest"])
            assert one["version"]
            tokens, age = first["tokens"], first["age"]
            picture = await page.until(lambda picture: picture["calls"][0]["tokens"] > tokens)
            assert picture["calls"][0]["age"] > age
            assert (await page.cancel(waits["id"]))["type"] == "cancelling"
            assert (await second).status_code == 503
        await page.shows()
    away.delete()
    gateway.rows(Backend).filter(name="one").update(slots=64)


async def test_a_call_that_its_backend_has_not_begun_to_answer_is_loading(gateway, cast, fake):
    fake.faults(path="/api/chat", model="qwen3:8b", hang_before_headers=True)
    async with page_of(gateway, cast.alice) as page, gateway.client(cast.keys["alice"]) as client:
        call = asyncio.create_task(client.post("/api/chat", json=chat(model="qwen3:8b")))
        row = (await page.shows("alice's key"))["alice's key"]
        if row["phase"] == "line":  # caught on its way
            picture = await page.until(lambda picture: picture["calls"][0]["phase"] != "line")
            row = picture["calls"][0]
        assert (row["phase"], row["tokens"], row["rate"]) == ("loading", 0, None)
        assert (await page.cancel(row["id"]))["type"] == "cancelling"
        answer = await call
        assert (answer.status_code, answer.json()["error"].split(".")[0]) == (
            503,
            "An administrator cancelled this call",
        )
        await until(lambda: seen_by(fake, row["id"]).disconnected)


async def test_cancel_is_for_those_who_may_and_ends_the_real_stream(gateway, cast, fake):
    async with (
        stream(gateway, cast.keys["alice"]) as (call_id, lines),
        stream(gateway, cast.keys["bob"]) as (other_id, other_lines),
    ):
        for person, why in (
            (cast.charlie, "not running any more"), (cast.bob, "not running any more"),
            (cast.vera, "Your role does not allow"), (cast.stan, "not running any more"),
        ):  # fmt: skip
            async with page_of(gateway, person) as page:
                await page.next()
                refused = await page.cancel(call_id)
                assert refused["type"] == "refused", person
                assert why in refused["why"]
        permit(gateway, cast.stan, "add_callcancellation")
        async with page_of(gateway, cast.stan) as page:
            await page.shows("alice's key", "bob's key")
            since = time.monotonic()
            assert (await page.cancel(call_id))["type"] == "cancelling"
            assert "cancelled this call" in (await last_line(lines))["error"]
            print(f"\n  cancelled within {time.monotonic() - since:.2f} s", end=" ")
            await until(lambda: seen_by(fake, call_id).disconnected)
            await page.shows("bob's key")
        record = await gateway.record(call_id)
        assert (record.outcome, record.estimated) == ("cancelled", True)
        assert record.completion_tokens > 0
        assert (
            f"The call {call_id} of the key {record.api_key.prefix} is cancelled by {cast.stan.username}"
            in gateway.log()
        )
        assert "message" in json.loads(await anext(other_lines))
        async with page_of(gateway, cast.bob) as page:
            await page.shows("bob's key")
            assert (await page.cancel(other_id))["type"] == "cancelling"
            assert "cancelled this call" in (await last_line(other_lines))["error"]


async def test_t13_rights_are_looked_at_again_while_a_page_is_open(gateway, cast):
    session = sign_in(gateway, cast.vera)
    async with (
        stream(gateway, cast.keys["alice"]), stream(gateway, cast.keys["bob"]),
        page_of(gateway, cast.alice) as alice, open_socket(gateway, session) as socket,
    ):  # fmt: skip
        vera = Page(socket)
        await alice.shows("alice's key", "bob's key")
        gateway.rows(Membership).filter(user=cast.alice).update(role="member")
        rows = await alice.shows("alice's key")
        assert rows["alice's key"]["may_end"]
        gateway.rows(Membership).filter(user=cast.alice).delete()
        await alice.shows()
        gateway.rows(User).filter(pk=cast.alice.pk).update(is_active=False)
        assert await alice.closed() == 4401

        await vera.shows("bob's key")  # Alice's call was cut with her account
        gateway.rows(Session).filter(session_key=session).delete()
        assert await vera.closed() == 4401


async def test_n_odd_messages_close_the_socket_and_harm_nobody(gateway, cast):
    odd = {
        "no JSON": ("{", 4400),
        "another type": ('{"type": "shout"}', 4400),
        "a wrong type": ('{"type": "cancel", "call": 5}', 4400),
        "a list": ("[]", 4400),
        "bytes": (b"\x00\x01", 4413),
        "too much": ('{"type": "cancel", "call": "' + "x" * 5000 + '"}', 4413),
        "more than the server takes": ("x" * 70_000, 1009),
    }
    async with page_of(gateway, cast.root) as bystander:
        for what, (message, code) in odd.items():
            async with page_of(gateway, cast.root) as page:
                await page.socket.send(message)
                assert await page.closed() == code, what
        async with page_of(gateway, cast.root) as page:
            for _ in range(50):
                page.socket.protocol.send_text(b'{"type": "cancel", "call": "x"}')
            page.socket.send_data()  # in one piece: most are there already when the socket is closed
            assert await page.closed() == 4400
        for _ in range(2):
            await bystander.until(lambda picture: picture["calls"] == [])
    assert "Traceback" not in gateway.log()


async def test_t13_random_bytes_after_the_handshake_harm_nobody(gateway, cast):
    dice = random.Random(13)
    session = sign_in(gateway, cast.bob)
    request = (
        f"GET /ws/live HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\nOrigin: {gateway.url}\r\n"
        f"Cookie: sessionid={session}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with page_of(gateway, cast.bob) as bystander:
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(request.encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert head.startswith(b"HTTP/1.1 101 ")
            # Frames begin right more often than chance would have them.
            start = dice.choice((b"", b"\x81\x85", b"\x82\xfe", b"\x01\x80", b"\x80\x81", b"\x89\xff", b"\x88\x82"))
            writer.write(start + dice.randbytes(dice.choice((1, 5, 50, 2000))))
            writer.write_eof()
            await asyncio.wait_for(reader.read(), PATIENCE)  # it closes
            writer.close()
        await bystander.shows()
    assert "Traceback" not in gateway.log()


async def test_one_person_has_so_many_pages_open_and_others_can_open_theirs(gateway, cast):
    session = sign_in(gateway, cast.bob)
    sockets = [await open_socket(gateway, session) for _ in range(21)]
    assert await Page(sockets.pop()).closed() == 4429
    async with page_of(gateway, cast.alice) as page:
        await page.shows()
    await sockets.pop().close()
    async with page_of(gateway, cast.bob) as page:
        await page.shows()
    for socket in sockets:
        await socket.close()


async def test_the_page_is_for_those_who_are_signed_in_and_has_no_inline_script(gateway, cast):
    session = sign_in(gateway, cast.bob)
    async with gateway.client() as client:
        assert (await client.get("/live/")).status_code == 302
        page = await client.get("/live/", headers={"cookie": f"sessionid={session}"})
        assert page.status_code == 200
        scripts = [part for part in page.text.split("<script")[1:] if not part.split(">")[1].startswith("</script")]
        assert scripts == []
        source = page.text.split('src="')[-1].split('"')[0]
        assert source.endswith("live.js")
        assert "WebSocket" in (await client.get(source)).text


async def test_l1_a_drain_closes_pages_and_ends_well(make_gateway):
    draining = make_gateway()
    await asyncio.to_thread(draining.start)
    async with page_of(draining, make_person(draining, "bob")) as page:
        await page.next()
        draining.signal(signal.SIGTERM)
        since = time.monotonic()
        assert await page.closed() == 1012
        assert await asyncio.to_thread(draining.stop) == 0
    print(f"\n  drained within {time.monotonic() - since:.1f} s", end=" ")


async def test_on_daphne_a_page_shows_calls_and_ends_them(make_gateway, fake):
    gateway = make_gateway(server="daphne")
    gateway.make_backend(fake.url, slots=64)
    gateway.cast = Cast(gateway)
    await asyncio.to_thread(gateway.start)
    with pytest.raises(InvalidStatus):
        async with open_socket(gateway, origin="https://evil.example"):
            raise AssertionError
    async with stream(gateway, gateway.cast.keys["bob"]) as (call_id, lines):
        async with page_of(gateway, gateway.cast.bob) as page:
            await page.shows("bob's key")
            assert (await page.cancel(call_id))["type"] == "cancelling"
            assert "cancelled this call" in (await last_line(lines))["error"]
            await page.shows()
        async with page_of(gateway, gateway.cast.bob) as page:
            await page.socket.send("x" * 5000)
            assert await page.closed() == 4413
        async with page_of(gateway, gateway.cast.bob) as page:
            await page.socket.send("x" * 70_000)
            await page.closed()  # Daphne drops the connection without a word
    assert (await gateway.record(call_id)).outcome == "cancelled"


# Several workers


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.mark.parametrize("layer", ["redis", "no redis"])
async def test_s7_pages_show_the_calls_of_all_workers_and_end_them_wherever_they_run(
    make_gateway, fake, redis_server, layer
):
    options = {"REDIS_URL": redis_server.url} if layer == "redis" else {}
    gateway = make_gateway(workers=WORKERS, **options)
    gateway.make_backend(fake.url, slots=64)
    gateway.cast = Cast(gateway)
    await asyncio.to_thread(gateway.start)
    keys = ["alice's key"] * 8
    opened = [stream(gateway, gateway.cast.keys["alice"]) for _ in keys]
    calls = [await each.__aenter__() for each in opened]
    try:
        async with page_of(gateway, gateway.cast.alice) as page, page_of(gateway, gateway.cast.root) as other:
            await page.shows(*keys)
            await other.until(lambda picture: picture["workers"] == WORKERS and len(picture["calls"]) == 8)
            for call_id, lines in calls[:4]:
                since = time.monotonic()
                assert (await page.cancel(call_id))["type"] == "cancelling"
                assert "cancelled this call" in (await last_line(lines))["error"]
                print(f"\n  cancelled within {time.monotonic() - since:.2f} s", end=" ")
            await page.shows(*keys[4:])
            await other.shows(*keys[4:])

            if layer == "redis":
                redis_server.kill()
                await other.until(lambda picture: picture["alone"])
                redis_server.start()
                await other.until(lambda picture: not picture["alone"] and picture["workers"] == WORKERS)
        for call_id, _ in calls[:4]:
            assert (await gateway.record(call_id)).outcome == "cancelled"
    finally:
        for each in opened:
            await each.__aexit__(None, None, None)


async def test_a_worker_that_dies_leaves_the_page_within_seconds(make_gateway, fake):
    gateway = make_gateway(workers=2)
    gateway.cast = Cast(gateway)
    await asyncio.to_thread(gateway.start)
    async with page_of(gateway, gateway.cast.root) as page:
        await page.until(lambda picture: picture["workers"] == 2)
        port = page.socket.local_address[1]
        [here] = [pid for pid in gateway.worker_pids() if _holds(pid, port)]
        [other] = [pid for pid in gateway.worker_pids() if pid != here and _holds(pid, gateway.port)]
        os.kill(other, signal.SIGSTOP)  # the supervisor would replace one that it saw end
        since = time.monotonic()
        await page.until(lambda picture: picture["workers"] == 1)
        print(f"\n  gone within {time.monotonic() - since:.1f} s", end=" ")
        os.kill(other, signal.SIGCONT)
        await page.until(lambda picture: picture["workers"] == 2)


def _holds(pid, port):
    """Whether a process has the other end of a connection, or listens on a port."""
    addresses = [each.raddr or each.laddr for each in psutil.Process(pid).net_connections()]
    return any(address.port == port for address in addresses)
