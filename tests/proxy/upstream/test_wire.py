"""Both HTTP clients of calls against peers that say exactly the bytes of the test: each is the other's oracle."""

import asyncio
import socket
import ssl
import struct

import pytest
import trustme

from proxy.errors import BrokenAnswer, Unreachable
from proxy.upstream import via_httpx, wire
from proxy.upstream.wire import HIGH_WATER, MAX_HEAD, MAX_INTERIM_ANSWERS, Endpoint

REQUEST = (b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n", b"body")
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = OK + b"content-length: 2\r\n\r\n{}"
PATIENCE = 20


class Peer:
    """A listener without a server: the test accepts, reads, answers and closes, each when it likes."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.open = []

    async def accept(self):
        connection, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        connection.setblocking(False)
        self.open.append(connection)
        return connection

    async def request(self, connection):
        """Reads one request; b"" where the client closed."""
        data = b""
        while not data.endswith(REQUEST[1]):
            part = await asyncio.get_running_loop().sock_recv(connection, 65536)
            if not part:
                return b""
            data += part
        return data

    async def say(self, connection, data):
        await asyncio.get_running_loop().sock_sendall(connection, data)

    def reset(self, connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    async def answer_all(self, *answers, close=False):
        """Serves connections one after the other, each answer on whichever connection the request comes."""
        loop = asyncio.get_running_loop()
        self.connections = 0
        for answer in answers:
            connection = await self.accept()
            self.connections += 1
            if await self.request(connection):
                try:
                    await self.say(connection, answer)
                except OSError:
                    pass  # refused in the middle of it
            if close:
                connection.close()
            else:
                loop.call_later(PATIENCE, connection.close)

    def close(self):
        for connection in (self.listener, *self.open):
            connection.close()


@pytest.fixture
async def peer():
    made = Peer()
    yield made
    made.close()


def endpoint(port, *addresses, tls=None, name=None, seconds=5.0):
    return Endpoint(addresses or ("127.0.0.1",), port, tls, name, seconds)


@pytest.fixture(params=[wire, via_httpx], ids=["wire", "httpx"])
async def transport(request):
    """The module of a transport."""
    yield request.param
    # What was closed is gone before the loop is.
    while any(getattr(task.get_coro(), "__qualname__", "") == "Connection.drop" for task in asyncio.all_tasks()):
        await asyncio.sleep(0)


@pytest.fixture
async def make_pool(transport):
    made = []

    def make(*args, **options):
        made.append(transport.Pool(*args, **options))
        return made[-1]

    async with asyncio.timeout(PATIENCE):
        yield make
    for pool in made:
        pool.close()
    await asyncio.sleep(0)


@pytest.fixture
def pool(peer, make_pool):
    return make_pool(endpoint(peer.port))


async def whole_body(answer):
    parts = []
    while part := await answer.read():
        parts.append(part)
    return b"".join(parts)


async def call(pool):
    """(status, body) of one exchange. Raises as the client does."""
    answer = await pool.exchange(REQUEST)
    try:
        return answer.status, await whole_body(answer)
    finally:
        answer.close()


async def serve_one(peer, connection, answer=WHOLE):
    assert await peer.request(connection) == b"".join(REQUEST)
    await peer.say(connection, answer)


# Connections that are used again


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n1;ext=1\r\n{\r\n1\r\n}\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}",
    ],
    ids=["length", "chunked", "chunked with trimmings", "after interim answers", "HTTP/1.0"],
)
async def test_a_connection_is_used_again_after_a_whole_answer(peer, pool, transport, answer):
    for number in range(3):
        exchange = asyncio.create_task(call(pool))
        if not number or (transport is via_httpx and answer.startswith(b"HTTP/1.0")):  # which h11 never keeps
            connection = await peer.accept()
        await serve_one(peer, connection, answer)
        assert await exchange == (200, b"{}")


@pytest.mark.parametrize(
    ("answer", "body", "closes"),
    [
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}", b"{}", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"{}", False),
        (OK + b"\r\nuntil the end", b"until the end", True),
        (WHOLE + b"junk", b"{}", False),
        (WHOLE + WHOLE, b"{}", False),  # an answer that nobody asked for must not meet the next call
        (WHOLE + b"\r\n\r\nHTTP/1.1 200 OK\r\n", b"{}", False),
    ],
    ids=["said close", "HTTP/1.0", "ends by closing", "junk after it", "a second answer", "half a second answer"],
)
async def test_b5_a_connection_is_not_used_again_where_its_state_is_in_doubt(peer, pool, answer, body, closes):
    for _ in range(2):
        exchange = asyncio.create_task(call(pool))
        connection = await peer.accept()
        await serve_one(peer, connection, answer)
        if closes:
            connection.close()
        assert await exchange == (200, body)


async def test_b5_bytes_on_an_idle_connection_end_it(peer, pool, transport):
    exchange = asyncio.create_task(call(pool))
    first = await peer.accept()
    await serve_one(peer, first)
    await exchange
    await peer.say(first, WHOLE)
    if transport is wire:
        assert await received(first) == b""
    exchange = asyncio.create_task(call(pool))
    await serve_one(peer, await peer.accept())
    assert await exchange == (200, b"{}")
    assert await received(first) == b""  # httpcore looks at it when it is wanted


async def received(connection):
    """What comes next on a connection; b"" at its end, be it in order or not."""
    try:
        return await asyncio.get_running_loop().sock_recv(connection, 65536)
    except ConnectionResetError:
        return b""


async def test_b13_idle_connections_are_dropped_by_age(peer, pool, transport, monkeypatch):
    exchange = asyncio.create_task(call(pool))
    first = await peer.accept()
    await serve_one(peer, first)
    await exchange
    monkeypatch.setattr(transport, "IDLE_SECONDS", 0.0)
    pool.drop_old()
    assert await received(first) == b""


async def test_what_was_not_read_to_its_end_is_aborted(peer, pool):
    exchange = asyncio.create_task(pool.exchange(REQUEST))
    connection = await peer.accept()
    await serve_one(peer, connection, OK + b"content-length: 100\r\n\r\nsome")
    answer = await exchange
    assert await answer.read() == b"some"
    answer.close()
    assert await received(connection) == b""  # aborted, or closed in order: either tells the backend


async def test_b10_cancelling_before_the_head_closes_the_connection(peer, pool):
    exchange = asyncio.create_task(pool.exchange(REQUEST))
    connection = await peer.accept()
    await peer.request(connection)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange
    assert await received(connection) == b""


# Stale connections


async def pooled(peer, pool):
    """A connection of the pool that has served one call."""
    exchange = asyncio.create_task(call(pool))
    connection = await peer.accept()
    await serve_one(peer, connection)
    await exchange
    return connection


async def test_b13_a_request_that_met_a_closed_connection_is_sent_again_on_a_fresh_one(peer, pool):
    stale = await pooled(peer, pool)
    stale.close()  # and the client's loop had no turn to learn of it
    exchange = asyncio.create_task(call(pool))
    await serve_one(peer, await peer.accept())
    assert await exchange == (200, b"{}")


async def test_b13_a_large_request_is_sent_again_whole(peer, pool):
    stale = await pooled(peer, pool)
    stale.close()
    request = (REQUEST[0].replace(b": 4", b": 5000004"), b"x" * 5_000_000 + b"body")
    exchange = asyncio.create_task(pool.exchange(request))
    fresh = await peer.accept()
    assert len(await peer.request(fresh)) == sum(map(len, request))
    await peer.say(fresh, WHOLE)
    answer = await exchange
    assert answer.status == 200
    answer.close()


async def test_b13_it_is_sent_again_once(peer, pool):
    stale = await pooled(peer, pool)
    stale.close()
    exchange = asyncio.create_task(call(pool))
    fresh = await peer.accept()
    await peer.request(fresh)
    fresh.close()
    with pytest.raises(BrokenAnswer):
        await exchange
    assert not await waits_to_be_accepted(peer)


async def waits_to_be_accepted(peer):
    """Whether one more connection has come."""
    try:
        async with asyncio.timeout(0.05):
            await peer.accept()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("how", ["fin", "rst", "half an answer"])
async def test_b2_a_request_that_the_backend_had_is_never_sent_again(peer, pool, how):
    """Even on a connection that was used before: it may have begun to generate."""
    connection = await pooled(peer, pool)
    exchange = asyncio.create_task(call(pool))
    await peer.request(connection)
    if how == "half an answer":
        await peer.say(connection, b"HTTP/1.1 2")
    peer.reset(connection) if how == "rst" else connection.close()
    with pytest.raises(BrokenAnswer):
        await exchange
    assert not await waits_to_be_accepted(peer)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_b2_a_fresh_connection_that_dies_is_not_replaced(peer, pool, how):
    exchange = asyncio.create_task(call(pool))
    connection = await peer.accept()
    await peer.request(connection)
    peer.reset(connection) if how == "rst" else connection.close()
    with pytest.raises(BrokenAnswer):
        await exchange
    assert not await waits_to_be_accepted(peer)


# Heads that are none

BAD_HEADS = {
    "no HTTP": b"NONSENSE\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 Odd\r\ncontent-length: 0\r\n\r\n",
    "status 99": b"HTTP/1.1 99 Odd\r\ncontent-length: 0\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 Odd\r\ncontent-length: 0\r\n\r\n",
    "status abc": b"HTTP/1.1 abc Odd\r\ncontent-length: 0\r\n\r\n",
    "HTTP/9": b"HTTP/9.9 200 OK\r\ncontent-length: 0\r\n\r\n",
    "interim flood": b"HTTP/1.1 103 Early\r\nx: 1\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1) + WHOLE,
    "endless interim flood": b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + WHOLE,
    "header bomb": OK + b"".join(b"x-%d: %b\r\n" % (n, b"b" * 1000) for n in range(99)) + b"content-length: 0\r\n\r\n",
    "many headers": OK + b"a:\r\n" * 20_000 + b"content-length: 0\r\n\r\n",
    "endless header": OK + b"x: " + b"y" * 10_000_000,
    "endless name": OK + b"y" * 10_000_000,
    "endless reason": b"HTTP/1.1 200 " + b"y" * 10_000_000,
    "both framings": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "both framings, other order": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}}",
    "the same length twice": OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "list of lengths": OK + b"content-length: 2, 2\r\n\r\n{}",
    "signed length": OK + b"content-length: +2\r\n\r\n{}",
    "negative length": OK + b"content-length: -1\r\n\r\n{}",
    "hex length": OK + b"content-length: 0x2\r\n\r\n{}",
    "huge length": OK + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "gzip in the framing": OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "stacked chunked": OK + b"transfer-encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "identity": OK + b"transfer-encoding: identity\r\n\r\n{}",
    "space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\n{}",
    "folded line": OK + b"x: 1\r\n 2\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a value": OK + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "bare CR in a value": OK + b"x: a\rb\r\ncontent-length: 2\r\n\r\n{}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_b5_a_head_that_is_not_clean_http_is_refused_and_its_connection_dropped(peer, pool, name):
    serving = asyncio.create_task(peer.answer_all(BAD_HEADS[name], WHOLE))
    with pytest.raises(BrokenAnswer):
        await call(pool)
    assert await call(pool) == (200, b"{}")
    await serving
    assert peer.connections == 2


@pytest.mark.parametrize("transport", [wire], ids=["wire"], indirect=True)  # h11 has a bound of its own: 100 KiB
async def test_b5_what_is_kept_of_a_bad_head_is_bounded(peer, pool):
    connections = []
    connect = pool._connect

    async def noting():
        connections.append(await connect())
        return connections[-1]

    pool._connect = noting
    serving = asyncio.create_task(peer.answer_all(OK + b"x: y\r\n" * 2_000_000))
    with pytest.raises(BrokenAnswer):
        await call(pool)
    assert sum(len(name) + len(value) for name, value in connections[0]._headers) <= MAX_HEAD
    serving.cancel()


# Bodies that break

BAD_BODIES = {
    "truncated length": OK + b"content-length: 100\r\n\r\nsome",
    "truncated chunk": OK + b"transfer-encoding: chunked\r\n\r\n10\r\nsome",
    "no last chunk": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n",
    "half a last chunk": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n",
    "bad chunk size": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\nxyz\r\n",
    "negative chunk": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n-1\r\n",
    "huge chunk": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\nfffffffffffffffff\r\n",
    "bad chunk end": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsomething\r\n",
    "chunk extension flood": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n4;" + b"x" * 2_000_000,
    "trailer flood": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n" + b"x: y\r\n" * 400_000,
    "endless trailer": OK + b"transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\nx: " + b"y" * 2_000_000,
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_b3_b5_a_body_that_breaks_off_is_no_clean_end(peer, pool, name):
    serving = asyncio.create_task(peer.answer_all(BAD_BODIES[name], WHOLE, close=True))
    answer = await pool.exchange(REQUEST)
    with pytest.raises(BrokenAnswer):
        await whole_body(answer)
    answer.close()
    assert await call(pool) == (200, b"{}")
    await serving


async def test_b3_a_reset_is_no_clean_end_even_where_the_end_is_the_close(peer, pool):
    exchange = asyncio.create_task(pool.exchange(REQUEST))
    connection = await peer.accept()
    await serve_one(peer, connection, OK + b"\r\nsome")
    answer = await exchange
    assert await answer.read() == b"some"
    peer.reset(connection)
    with pytest.raises(BrokenAnswer):
        await answer.read()
    answer.close()


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_b6_small_packets_change_nothing(peer, pool, size):
    answer = OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
    exchange = asyncio.create_task(call(pool))
    connection = await peer.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await peer.request(connection)
    for at in range(0, len(answer), size):
        await peer.say(connection, answer[at : at + size])
        await asyncio.sleep(0)
    assert await exchange == (200, b"hello, world")


PIECES = [b"10000\r\n" + b"x" * 65536 + b"\r\n", b"1\r\nx\r\n" * 10_000]


@pytest.mark.parametrize("piece", PIECES, ids=["large chunks", "tiny chunks"])
async def test_n6_a_backend_waits_while_nobody_takes_what_came(peer, pool, piece):
    """Whatever the kernel holds of it. (That ours holds little is seen in wire's own test.)"""
    exchange = asyncio.create_task(pool.exchange(REQUEST))
    connection = await peer.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    await serve_one(peer, connection, OK + b"transfer-encoding: chunked\r\n\r\n")
    answer = await exchange
    sent = 0

    async def pump():
        nonlocal sent
        while True:
            await peer.say(connection, piece)
            sent += len(piece)

    pumping = asyncio.create_task(pump())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    print(f"stopped after {sent >> 10} KiB")
    assert sent < 32 << 20
    taken = 0
    while sent == before:
        taken += len(await answer.read())
    assert taken
    answer.close()
    pumping.cancel()
    with pytest.raises((asyncio.CancelledError, OSError)):
        await pumping


@pytest.mark.parametrize("transport", [wire], ids=["wire"], indirect=True)
@pytest.mark.parametrize("piece", PIECES, ids=["large chunks", "tiny chunks"])
async def test_n6_reading_pauses_while_nobody_takes_what_came(peer, pool, piece):
    exchange = asyncio.create_task(pool.exchange(REQUEST))
    connection = await peer.accept()
    await serve_one(peer, connection, OK + b"transfer-encoding: chunked\r\n\r\n")
    answer = await exchange
    pump = asyncio.create_task(forever(peer, connection, piece))
    held = answer._connection
    while not held._paused:
        await asyncio.sleep(0)
    before = held._buffered
    for _ in range(50):
        await asyncio.sleep(0.001)
    # One read of the socket may come on top.
    assert held._buffered == before <= HIGH_WATER + wire.READ_BYTES * (1 + wire.PIECE_COST // 6)
    while held._paused:
        assert 0 < len(await answer.read()) < 2 * wire.READ_BYTES
    answer.close()
    pump.cancel()
    with pytest.raises((asyncio.CancelledError, OSError)):
        await pump


async def forever(peer, connection, piece):
    while True:
        await peer.say(connection, piece)


# Connecting


async def test_b1_a_refused_connection_is_unreachable(make_pool):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable):
        await make_pool(endpoint(port)).exchange(REQUEST)


async def test_b1_connecting_has_a_deadline(make_pool):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        # The queue of connections nobody accepts is full with these: the kernel answers no more.
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable):
            await make_pool(endpoint(address[1], seconds=0.1)).exchange(REQUEST)
        took = asyncio.get_running_loop().time() - began
        for one in waiting:
            one.close()
    assert 0.09 <= took < 5, took


async def test_b1_the_next_address_of_a_name_is_tried(peer, make_pool):
    pool = make_pool(endpoint(peer.port, "127.0.0.2", "127.0.0.1"))
    exchange = asyncio.create_task(call(pool))
    await serve_one(peer, await peer.accept())
    assert await exchange == (200, b"{}")


async def test_b14_without_a_permitted_address_nothing_is_connected_to(make_pool):
    with pytest.raises(Unreachable):
        await make_pool(Endpoint((), 80, None, "rebound.example", 1)).exchange(REQUEST)


# TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def tls_server(authority, answer, *names, asks=False):
    """`asks`: for a certificate of the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)

    async def serve(reader, writer):
        try:
            while await reader.readuntil(REQUEST[1]):
                writer.write(answer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()

    return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)


@pytest.fixture
async def tls_port(authority):
    server = await tls_server(authority, WHOLE, "gpu.example", "127.0.0.1")
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_tls_with_a_certificate_of_ones_own_authority(authority, tls_port, make_pool):
    for name in ("gpu.example", "127.0.0.1"):
        pool = make_pool(endpoint(tls_port, tls=trusting(authority), name=name))
        assert [await call(pool) for _ in range(2)] == [(200, b"{}")] * 2


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_tls_whose_certificate_is_not_the_backends_is_unreachable(authority, tls_port, wrong, make_pool):
    trusted = trustme.CA() if wrong == "authority" else authority
    name = "other.example" if wrong == "name" else "gpu.example"
    pool = make_pool(endpoint(tls_port, tls=trusting(trusted), name=name))
    with pytest.raises(Unreachable):
        await call(pool)


async def test_tls_against_a_plain_port_is_unreachable(authority, peer, make_pool):
    pool = make_pool(endpoint(peer.port, tls=trusting(authority), name="gpu.example", seconds=2))

    async def plain():
        connection = await peer.accept()
        await peer.say(connection, WHOLE)

    serving = asyncio.create_task(plain())
    with pytest.raises(Unreachable):
        await call(pool)
    await serving
