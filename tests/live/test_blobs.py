"""Uploads through the gateway, on both transports: bodies of any size, and whatever can happen to them on their way."""

import asyncio
import hashlib
import time

import psutil
import pytest
import pytest_asyncio

from tests.live.seen import calls, new_calls, no_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

GIB = 1 << 30
# Of a GiB of zeros.
GIB_DIGEST = "sha256:49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
MIB = bytes(1 << 20)
BLOB = b"weights " * 10_000
TRANSPORTS = ("wire", "httpx")
PATIENCE = 20


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    """Two backends that are one fake, each reached in its own way. A call may last 1.5 s, and be silent for 2."""
    made = make_shared_gateway(CALL_TOTAL_SECONDS="1.5", BACKEND_FIRST_BYTE_SECONDS="2", BACKEND_GAP_SECONDS="2")
    for transport in TRANSPORTS:
        made.make_backend(shared_fake.url, transport, transport=transport, slots=8)
    _, made.key = made.make_key("manages", may_manage=True)
    _, made.ordinary_key = made.make_key("ordinary")
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    shared_fake.release()
    shared_fake.library.blobs.clear()
    return shared_fake


class Upload:
    """A client that sends its body as the test says."""

    def __init__(self, gateway, transport, digest, *headers, key=None):
        self.port = gateway.port
        lines = [
            f"POST /api/blobs/{digest} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {key or gateway.key}",
            f"X-Gateway-Backend: {transport}",
            *headers,
        ]
        self.head = "\r\n".join([*lines, "", ""]).encode()

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(self.head)
        return self

    async def __aexit__(self, *exc):
        self.writer.transport.abort()

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self):
        """(status, headers, body)"""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split(" ")[1]), headers, body


class Memory:
    """The largest size of a gateway while something happens, and what it was before."""

    def __init__(self, gateway):
        pids = [gateway.process.pid, *gateway.worker_pids()]
        self.processes = [psutil.Process(pid) for pid in pids]

    def now(self):
        return sum(process.memory_info().rss for process in self.processes)

    async def __aenter__(self):
        self.before = self.largest = self.now()
        self.task = asyncio.create_task(self.watch())
        return self

    async def watch(self):
        while True:
            self.largest = max(self.largest, self.now())
            await asyncio.sleep(0.02)

    async def __aexit__(self, *exc):
        self.task.cancel()

    @property
    def growth(self):
        return (self.largest - self.before) / (1 << 20)


# Size


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "mib"), [("wire", 1024), ("httpx", 256)])
async def test_n7_a_gigabyte_up_leaves_memory_flat_and_no_deadline_stops_it(gateway, fake, transport, mib):
    digest = GIB_DIGEST if mib == 1024 else digest_of(MIB * mib)
    began = time.monotonic()
    async with Memory(gateway) as memory, Upload(gateway, transport, digest, f"Content-Length: {mib << 20}") as upload:
        for _ in range(mib):
            await upload.send(MIB)
        status, headers, body = await upload.answer()
    seconds = time.monotonic() - began
    print(f"{transport}: {mib} MiB up in {seconds:.1f} s, {mib / seconds:.0f} MiB/s, RSS +{memory.growth:.1f} MiB")
    assert (status, body) == (201, b"")
    assert memory.growth <= 32
    record = await gateway.record(headers["x-request-id"])
    assert (record.bytes_in, record.outcome, record.backend) == (mib << 20, "ok", transport)


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "mib"), [("wire", 1024), ("httpx", 256)])
async def test_b6_a_gigabyte_down_leaves_memory_flat(gateway, fake, transport, mib):
    fake.faults(times=1, path="/api/pull", model="llama3.2:latest", progress_mb=mib * 1.048576)
    body = b'{"model":"llama3.2"}'
    head = (
        f"POST /api/pull HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {gateway.key}\r\n"
        f"X-Gateway-Backend: {transport}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began, size, last = time.monotonic(), 0, b""
    async with Memory(gateway) as memory:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head.encode() + body)
        while piece := await reader.read(1 << 20):
            size += len(piece)
            last = (last + piece)[-100:]
        writer.close()
    seconds = time.monotonic() - began
    rate = size / seconds / 2**20
    print(f"{transport}: {size >> 20} MiB down in {seconds:.1f} s, {rate:.0f} MiB/s, RSS +{memory.growth:.1f} MiB")
    assert size > mib << 20
    assert last.endswith(b'{"status":"success"}\n')
    assert memory.growth <= 32


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_n5_an_upload_may_take_longer_than_any_call(gateway, fake, transport):
    """CALL_TOTAL_SECONDS is 1.5, BACKEND_GAP_SECONDS 2: a client that pauses is its server's to judge."""
    async with Upload(gateway, transport, digest_of(BLOB), "Transfer-Encoding: chunked") as upload:
        began = time.monotonic()
        for start in (0, 40_000):
            piece = BLOB[start : start + 40_000]
            await upload.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(2.2)
        await upload.send(b"0\r\n\r\n")
        status, _, _ = await upload.answer()
    assert status == 201
    assert time.monotonic() - began > 4


# What may happen on the way


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("framing", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
async def test_b10_who_leaves_in_mid_upload_ends_it_at_the_backend(gateway, fake, transport, framing):
    since = fake.log.totals.calls
    with new_calls(fake) as seen:
        async with Upload(gateway, transport, digest_of(b"never"), framing) as upload:
            await upload.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
            await arrived(fake, since)
        began = time.monotonic()
        await fake.saw_idle(timeout=PATIENCE)
    print(f"{transport}: the backend knew after {time.monotonic() - began:.3f} s")
    assert seen[0].disconnected
    records = await gateway.wait_for_records(1, endpoint="/api/blobs/{digest}", backend=transport, outcome="cancelled")
    assert records[-1].status == 499


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_n6_a_backend_that_does_not_read_stops_the_client_and_not_for_ever(gateway, fake, transport):
    """Nothing is kept for it but what is on its way; after BACKEND_GAP_SECONDS it counts as silent."""
    fake.faults(path="/api/blobs/*", hang_before_body=True)
    async with Memory(gateway) as memory, Upload(gateway, transport, GIB_DIGEST, f"Content-Length: {GIB}") as upload:
        sending = asyncio.create_task(send_for_ever(upload))
        status, headers, body = await upload.answer()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    fake.release()
    await fake.saw_idle(timeout=PATIENCE)
    print(f"{transport}: RSS +{memory.growth:.1f} MiB")
    assert status == 504, body
    assert memory.growth <= 32
    record = await gateway.record(headers["x-request-id"])
    assert (record.outcome, record.error) == ("timeout", "gap_timeout")
    assert record.bytes_in < 64 << 20


async def arrived(fake, since):
    """Waits until an upload that began after a number of calls is on its way."""
    await fake.log.until(lambda: any(call.received >= 1000 for call in calls(fake, since)), PATIENCE)


async def send_for_ever(upload):
    while True:
        await upload.send(MIB)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("body", ["waits", "flows"])
async def test_an_answer_before_the_body_reaches_the_client(gateway, fake, transport, body):
    fake.faults(path="/api/blobs/*", answers_before_body=400, error="no room left")
    async with Upload(gateway, transport, GIB_DIGEST, f"Content-Length: {GIB}") as upload:
        sending = asyncio.create_task(send_for_ever(upload) if body == "flows" else upload.send(b"x"))
        status, _, said = await upload.answer()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert (status, said) == (400, b'{"error":"no room left"}')
    fake.clear_faults()
    async with Upload(gateway, transport, digest_of(BLOB), f"Content-Length: {len(BLOB)}") as upload:
        await upload.send(BLOB)
        assert (await upload.answer())[0] == 201, "the next one is none the worse"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_b5_a_backend_that_falls_silent_in_an_early_answer_is_not_waited_for(gateway, fake, transport):
    """When the answer began, the gateway waited for the client, whose time is its own: from then on it judges again."""
    silence = {"write_sizes": [1000], "packet_gap": 10 * PATIENCE}
    fake.faults(path="/api/blobs/*", answers_before_body=400, error="x" * 3000, **silence)
    async with Upload(gateway, transport, GIB_DIGEST, f"Content-Length: {GIB}") as upload:
        await upload.send(b"x")
        status, headers, _ = await upload.answer()
    assert status == 504
    assert (await gateway.record(headers["x-request-id"])).error == "gap_timeout"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_blob_that_is_there_need_not_be_sent(gateway, fake, transport):
    fake.library.blobs.add(GIB_DIGEST)
    async with Upload(gateway, transport, GIB_DIGEST, f"Content-Length: {GIB}", "Expect: 100-continue") as upload:
        assert await upload.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        status, headers, _ = await upload.answer()
    assert status == 200
    assert (await gateway.record(headers["x-request-id"])).outcome == "ok"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_expects_to_be_asked_for_the_body_is_asked(gateway, fake, transport):
    length = f"Content-Length: {len(BLOB)}"
    with new_calls(fake) as seen:
        async with Upload(gateway, transport, digest_of(BLOB), length, "Expect: 100-continue") as upload:
            assert await upload.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await upload.send(BLOB)
            assert (await upload.answer())[0] == 201
    assert "expect" not in {name.lower() for name, _ in seen[0].headers}


async def test_n7_without_the_right_nothing_of_the_body_is_read(gateway, fake):
    for key, expected in (("", 401), (gateway.ordinary_key, 403)):
        with no_calls(fake):
            async with Upload(
                gateway, "wire", GIB_DIGEST, f"Content-Length: {GIB}", "Expect: 100-continue", key=key or "none"
            ) as upload:
                status, headers, _ = await upload.answer()
        assert status == expected
        assert headers["connection"] == "close"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_b3_a_backend_that_resets_in_mid_upload(gateway, fake, transport):
    since = fake.log.totals.calls
    with new_calls(fake) as seen:
        async with Upload(gateway, transport, digest_of(b"never"), f"Content-Length: {GIB}") as upload:
            await upload.send(bytes(1000))
            await arrived(fake, since)
            fake.drop_connections()
            sending = asyncio.create_task(send_for_ever(upload))
            status, _, body = await upload.answer()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    assert status == 502, body
    assert len(seen) == 1, "never a second time"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_n3_n1_what_follows_an_upload_is_the_next_request(gateway, fake, transport):
    """A connection on which the body was read whole goes on."""
    async with Upload(gateway, transport, digest_of(BLOB), f"Content-Length: {len(BLOB)}") as upload:
        await upload.send(BLOB)
        status, headers, _ = await upload.answer()
        assert (status, headers.get("connection")) == (201, None)
        await upload.send(upload.head + BLOB)
        assert (await upload.answer())[0] == 200


async def test_b10_a_server_that_buffers_bodies_tells_of_a_departure_too(make_gateway, fake):
    """Daphne hands a body on when it has it all, and its departed clients have to be waited for."""
    made = make_gateway(server="daphne")
    made.make_backend(fake.url, "wire", slots=8)
    _, made.key = made.make_key("manages", may_manage=True)
    await asyncio.to_thread(made.start)
    async with Upload(made, "wire", digest_of(BLOB), f"Content-Length: {len(BLOB)}") as upload:
        await upload.send(BLOB)
        assert (await upload.answer())[0] == 201
    fake.library.blobs.clear()
    fake.faults(path="/api/blobs/*", slow_first_byte=60)
    since = fake.log.totals.calls
    with new_calls(fake) as seen:
        async with Upload(made, "wire", digest_of(BLOB), f"Content-Length: {len(BLOB)}") as upload:
            await upload.send(BLOB)
            await arrived(fake, since)
        await fake.saw_idle(timeout=PATIENCE)
    assert seen[0].disconnected
    assert (await made.wait_for_records(1, outcome="cancelled"))[0].endpoint == "/api/blobs/{digest}"
