"""Bodies that are written while they come, and answers that have none, against a peer that says the test's bytes."""

import asyncio

import pytest

from proxy.errors import BrokenAnswer
from proxy.upstream import via_httpx, wire
from proxy.upstream.wire import Endpoint
from tests.proxy.upstream.test_wire import PATIENCE, Peer

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n"
MIB = bytes(1 << 20)


def head(framing, method=b"POST"):
    return (b"%b /api/blobs/x HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % (method, framing), b"")


@pytest.fixture
async def peer():
    made = Peer()
    yield made
    made.close()


@pytest.fixture(params=[wire, via_httpx], ids=["wire", "httpx"])
async def pool(request, peer):
    made = request.param.Pool(Endpoint(("127.0.0.1",), peer.port, None, None, 5))
    yield made
    made.close()
    await asyncio.sleep(0)


class Source:
    """A body that counts what was taken of it, and may wait or fail on its way."""

    def __init__(self, *pieces, endless=False, gate=None, error=None):
        self.pieces, self.endless, self.gate, self.error = pieces, endless, gate, error
        self.taken = 0

    async def __aiter__(self):
        for piece in self.pieces:
            self.taken += len(piece)
            yield piece
        while self.endless:
            self.taken += len(MIB)
            yield MIB
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


async def until(peer, connection, end):
    data = b""
    async with asyncio.timeout(PATIENCE):
        while not data.endswith(end):
            part = await asyncio.get_running_loop().sock_recv(connection, 65536)
            assert part, data[-200:]
            data += part
    return data


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"content-length: 6", b"\r\n\r\nabcdef"),
        (b"transfer-encoding: chunked", b"\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"),
    ],
)
async def test_a_body_is_framed_as_the_head_says(peer, pool, framing, sent):
    async def serve():
        connection = await peer.accept()
        data = await until(peer, connection, sent[-5:])
        await peer.say(connection, CREATED)
        return data

    serving = asyncio.create_task(serve())
    answer = await pool.exchange(head(framing), aiter(Source(b"abc", b"def")))
    assert (answer.status, await answer.read()) == (201, b"")
    answer.close()
    assert (await serving).endswith(b"host: x\r\n" + framing + sent)


async def test_p8_a_clients_header_does_not_change_the_framing(peer, pool):
    """It cannot hold the line breaks that our own line has."""
    request = (
        b"POST /x HTTP/1.1\r\nhost: x\r\nuser-agent: transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
        b"",
    )

    async def serve():
        connection = await peer.accept()
        data = await until(peer, connection, b"abc")
        await peer.say(connection, CREATED)
        return data

    serving = asyncio.create_task(serve())
    (await pool.exchange(request, aiter(Source(b"abc")))).close()
    assert (await serving).endswith(b"\r\n\r\nabc")


async def test_b6_no_more_is_taken_than_the_backend_reads(peer, pool):
    source = Source(endless=True)
    exchange = asyncio.create_task(pool.exchange(head(b"transfer-encoding: chunked"), aiter(source)))
    connection = await peer.accept()
    before = -1
    async with asyncio.timeout(PATIENCE):
        while source.taken != before:  # the buffers of the kernel fill
            before = source.taken
            await asyncio.sleep(0.3)
    print(f"{source.taken >> 20} MiB were taken of an endless body that nobody reads")
    assert source.taken <= 64 << 20
    await asyncio.get_running_loop().sock_recv(connection, 1 << 20)
    async with asyncio.timeout(PATIENCE):
        while source.taken == before:
            await asyncio.get_running_loop().sock_recv(connection, 1 << 20)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange


@pytest.mark.parametrize("gap", ["the sender waits", "the backend does not read"])
async def test_an_answer_before_the_body_is_read_ends_the_upload(peer, pool, gap):
    source = Source(b"abc", gate=asyncio.Event()) if gap == "the sender waits" else Source(endless=True)
    exchange = asyncio.create_task(pool.exchange(head(b"transfer-encoding: chunked"), aiter(source)))
    connection = await peer.accept()
    await asyncio.get_running_loop().sock_recv(connection, 4096)
    await peer.say(connection, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\nstop")
    async with asyncio.timeout(PATIENCE):
        answer = await exchange
        assert (answer.status, await answer.read()) == (400, b"stop")
    answer.close()
    assert not pool._idle, "what is left of the body would be taken for the next request"


async def test_b10_a_sender_that_fails_ends_the_exchange(peer, pool):
    source = Source(b"abc", error=ValueError("left"))
    exchange = asyncio.create_task(pool.exchange(head(b"content-length: 9"), aiter(source)))
    connection = await peer.accept()
    with pytest.raises(ValueError, match="left"):
        await exchange
    async with asyncio.timeout(PATIENCE):
        try:
            while await asyncio.get_running_loop().sock_recv(connection, 4096):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("reset", [True, False])
async def test_b3_a_backend_that_leaves_during_an_upload_is_broken(peer, pool, reset):
    exchange = asyncio.create_task(pool.exchange(head(b"transfer-encoding: chunked"), aiter(Source(endless=True))))
    connection = await peer.accept()
    await asyncio.get_running_loop().sock_recv(connection, 4096)
    if reset:
        peer.reset(connection)
    else:
        connection.close()
    with pytest.raises(BrokenAnswer):
        async with asyncio.timeout(PATIENCE):
            await exchange


async def test_b13_an_upload_never_goes_on_a_pooled_connection(peer, pool):
    """It may be dead, and a body cannot be sent twice."""

    async def serve():
        first = await peer.accept()
        await peer.request(first)
        await peer.say(first, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        second = await peer.accept()
        await until(peer, second, b"abc")
        await peer.say(second, CREATED)

    serving = asyncio.create_task(serve())
    answer = await pool.exchange((b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n", b"body"))
    assert await answer.read() == b""
    answer.close()
    assert len(pool._idle) == 1
    answer = await pool.exchange(head(b"content-length: 3"), aiter(Source(b"abc")))
    assert answer.status == 201
    answer.close()
    await serving


@pytest.mark.parametrize("framing", [b"", b"content-length: 0\r\n", b"content-length: 999\r\n"])
async def test_an_answer_to_head_has_no_body_whatever_it_says(peer, pool, framing):
    async def serve():
        connection = await peer.accept()
        await until(peer, connection, b"\r\n\r\n")
        await peer.say(connection, b"HTTP/1.1 404 Not Found\r\n" + framing + b"\r\n")

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(PATIENCE):
        answer = await pool.exchange(head(b"accept: */*", b"HEAD"))
        assert (answer.status, await answer.read(), answer.at_end) == (404, b"", True)
        answer.close()
        await serving
