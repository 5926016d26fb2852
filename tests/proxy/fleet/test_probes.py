"""What the gateway believes of what a backend says of itself."""

import asyncio
import socket

import httpx
import orjson
import pytest

from proxy.fleet import probes
from proxy.fleet.probes import Watch, ask, installed_models, make_client, probe, problem_of, warm_models
from proxy.fleet.state import BackendState
from proxy.snapshot import Backend
from proxy.upstream.wire import Endpoint, Pool


def make_state(url, *addresses, credential=None):
    backend = Backend(1, "one", url, True, 4, None, "wire", credential=credential)
    return BackendState(backend, Pool(Endpoint(addresses, 0, None, None, 1)))


class Machine:
    """Answers each path with the bytes it is given, and keeps the heads it was sent."""

    def __init__(self):
        self.answers = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": []}, "/api/ps": {"models": []}}
        self.heads = []
        self.writers = []

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self):
        """Closes all connections while their loop still runs."""
        self.server.close()
        for writer in self.writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def serve(self, reader, writer):
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                answer = self.answers[head.split(b" ")[1].decode()]
                if not isinstance(answer, bytes):
                    body = orjson.dumps(answer)
                    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
                writer.write(answer)
                await writer.drain()
                if not answer.startswith(b"HTTP/1.1 200"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def machine():
    made = Machine()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client():
    async with make_client(False) as made:
        yield made


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("0.33.0", "0.33.0"),
        ("0.33.0-rc2+x", "0.33.0-rc2+x"),
        ("<script>", ""),
        ("SSH-2.0 OpenSSH 9.2", ""),
        ("x" * 41, ""),
        ("\u00b2.1", ""),
        (7, ""),
        (None, ""),
        ({"a": 1}, ""),
    ],
)
async def test_b15_of_a_version_only_what_is_one_is_shown(machine, client, said, shown):
    machine.answers["/api/version"] = {"version": said}
    state = make_state(f"http://localhost:{machine.port}", "127.0.0.1")
    await probe(client, state, tags=True)
    assert state.version == shown
    assert not state.problem


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1 secret-banner\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\nsecret-banner secret",
        b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n['secret-banner']",
        b"HTTP/1.1 500 secret-banner\r\ncontent-length: 13\r\n\r\nsecret-banner",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/secret-banner\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 13\r\n\r\nsecret-banner",
    ],
    ids=["another protocol", "no JSON", "no object", "an error", "a redirect", "gzip"],
)
async def test_b15_a_probe_never_shows_what_a_port_said(machine, client, answer, caplog):
    machine.answers["/api/version"] = answer
    state = make_state(f"http://localhost:{machine.port}", "127.0.0.1")
    await probe(client, state, tags=True)
    assert state.problem
    assert "secret" not in state.problem
    assert "secret" not in caplog.text
    assert len(machine.heads) == 1, "a redirect must not be followed"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (httpx.ConnectTimeout("10.0.0.5"), "accept"),
        (httpx.ConnectError("[Errno 111] 10.0.0.5"), "connect"),
        (httpx.ReadTimeout("x"), "in time"),
        (TimeoutError(), "in time"),
        (httpx.RemoteProtocolError("illegal status line: bytearray(b'SSH-2.0')"), "HTTP"),
        (httpx.ReadError("x"), "HTTP"),
    ],
)
def test_b15_problems_are_told_in_our_own_words(error, text):
    assert text in problem_of(error)
    assert "10.0.0.5" not in problem_of(error)
    assert "SSH" not in problem_of(error)


async def test_b6_a_listing_that_trickles_for_ever_ends(client, monkeypatch):
    monkeypatch.setattr(probes, "QUESTION_SECONDS", 0.2)

    ended = asyncio.Event()

    async def trickle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            writer.close()
            ended.set()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    state = make_state(f"http://localhost:{server.sockets[0].getsockname()[1]}", "127.0.0.1")
    await asyncio.wait_for(probe(client, state, tags=True), 10)
    assert "in time" in state.problem
    await asyncio.wait_for(ended.wait(), 10)
    server.close()


async def test_b6_a_listing_without_end_is_cut(machine, client, monkeypatch):
    monkeypatch.setattr(probes, "MAX_ANSWER", 1000)
    machine.answers["/api/tags"] = {"models": ["x" * 2000]}
    state = make_state(f"http://localhost:{machine.port}", "127.0.0.1")
    with pytest.raises(ValueError, match="more than 1000"):
        await ask(client, state, "/api/tags")


JUNK = [None, 7, "x", [], {}, {"models": None}, {"models": {}}, {"models": [None, 7, "x", [], {}]}]
ITEMS = [{"name": 7}, {"model": []}, {"name": "../../x"}, {"model": "m", "digest": 7, "details": "x"}]


@pytest.mark.parametrize("answer", [value for value in JUNK if isinstance(value, dict)] + [{"models": ITEMS}])
def test_b5_listings_of_junk_list_nothing_and_raise_nothing(answer):
    models = installed_models(answer)
    assert set(models) <= {"m:latest"}
    assert set(warm_models(answer, models)) <= {"m:latest"}


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        (HEX, HEX), ("365c0bd3c000", "365c0bd3c000"), (f"sha256:{HEX}", f"sha256:{HEX}"[:64]),
        ("", ""), ("abc\0def", ""), ("abc\n", ""), (HEX + "0", ""), ("<b>", ""), ("\ud800", ""), ("²", ""), (7, ""),
        (None, ""), (["a"], ""),
    ],
)  # fmt: skip
def test_b5_of_a_digest_only_what_is_one_goes_into_records(said, believed):
    installed = installed_models({"models": [{"model": "m", "digest": said}, {"model": "copy", "digest": said}]})
    assert [model.digest for model in installed.values()] == [believed, believed]
    warm = warm_models({"models": [{"model": "m", "digest": said}]}, installed)
    assert set(warm) == ({"m:latest", "copy:latest"} if believed else {"m:latest"})


async def test_b14_the_credential_goes_to_the_address_that_was_checked(machine, client, monkeypatch):
    def getaddrinfo(*args, **kwargs):
        raise AssertionError("a probe must not ask for the name's address again")

    state = make_state(f"http://gpu.example:{machine.port}", "127.0.0.1", credential=(b"x-secret", b"s"))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert (await ask(client, state, "/api/version")) == {"version": "0.33.0"}
    head = machine.heads[0].decode().lower().split("\r\n")
    assert f"host: gpu.example:{machine.port}" in head
    assert "x-secret: s" in head


async def test_b14_a_name_that_comes_to_mean_a_metadata_service_is_not_connected_to(machine, monkeypatch):
    known = {"gpu.example": "127.0.0.1"}

    def getaddrinfo(host, port, *args, **kwargs):
        address = known.get(host, host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    state = make_state(f"http://gpu.example:{machine.port}")
    watch = Watch(state, None, 0.01, lambda: None)
    await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    assert state.pool.endpoint.addresses == ("127.0.0.1",)
    assert state.is_up
    known["gpu.example"] = "169.254.169.254"
    while state.is_up:
        await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    assert state.pool.endpoint.addresses == ()
    assert "link-local" in state.problem
    known["gpu.example"] = "127.0.0.1"
    while not state.is_up:
        await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    assert state.pool.endpoint.addresses == ("127.0.0.1",)
    watch.stop()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), TimeoutError()],
    ids=["no answer", "no answer in time"],
)
async def test_b12_one_failed_look_up_of_a_name_leaves_a_backend_that_is_up_its_addresses(
    machine, monkeypatch, failure
):
    failing = False

    def getaddrinfo(host, port, *args, **kwargs):
        if failing:
            raise failure
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    state = make_state(f"http://gpu.example:{machine.port}")
    seen = []
    watch = Watch(state, None, 0.01, lambda: seen.append((state.is_up, state.pool.endpoint.addresses)))
    while not state.is_up:
        await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    seen.clear()
    failing = True
    while state.is_up:
        await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    failing = False
    while not state.is_up:
        await watch.newer_than(asyncio.get_running_loop().time(), tags=False)
    watch.stop()
    await asyncio.sleep(0)
    assert "cannot be used" not in state.problem
    first_down = seen.index((False, ()))
    assert set(seen[:first_down]) == {(True, ("127.0.0.1",))}
    assert seen[-1] == (True, ("127.0.0.1",))
