"""The ways that only httpx has: an outbound proxy, HTTP/2; and certificates of clients, which both have."""

import asyncio
import ssl

import pytest
import trustme
from django.core.exceptions import ValidationError

from proxy.errors import BrokenAnswer, Unreachable
from proxy.fleet.tls import context_for, load_pair
from proxy.models import Backend as BackendRow
from proxy.snapshot import Backend
from proxy.upstream import via_httpx, wire
from proxy.upstream.via_httpx import Proxy
from tests.proxy.upstream.outbound import Http2Server, OutboundProxy
from tests.proxy.upstream.test_wire import PATIENCE, REQUEST, WHOLE, call, endpoint, tls_server, trusting, whole_body

OK = (200, b"{}")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def tls_port(authority):
    server = await tls_server(authority, WHOLE, "gpu.example")
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def plain_port():
    async def serve(reader, writer):
        try:
            while await reader.readuntil(REQUEST[1]):
                writer.write(WHOLE)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def make_pool():
    made = []

    def make(*args, **options):
        made.append(via_httpx.Pool(*args, **options))
        return made[-1]

    async with asyncio.timeout(PATIENCE):
        yield make
    for pool in made:
        pool.close()
        await asyncio.gather(*pool._dropping)


def through(proxy, credential=None):
    return Proxy("http", "proxy.example", proxy.port, credential)


# An outbound proxy. Endpoint.addresses are the proxy's, the name is the backend's.


async def test_https_goes_through_a_tunnel_to_the_backends_name(authority, tls_port, make_pool):
    async with OutboundProxy(tls_port) as proxy:
        pool = make_pool(endpoint(443, tls=trusting(authority), name="gpu.example"), through(proxy, (b"u", b"p:w")))
        assert [await call(pool) for _ in range(3)] == [OK] * 3
    (head,) = proxy.heads  # the tunnel was used again
    assert head.startswith(b"CONNECT gpu.example:443 HTTP/1.1\r\n")
    assert b"proxy-authorization: basic dtpwonc=" in head.lower()


async def test_http_is_asked_for_by_its_whole_address_and_keeps_the_credential_from_the_backend(plain_port, make_pool):
    async with OutboundProxy(plain_port) as proxy:
        pool = make_pool(endpoint(11434, name="gpu.example"), through(proxy, (b"u", b"p")))
        assert [await call(pool) for _ in range(2)] == [OK] * 2
    assert proxy.heads[0].startswith(b"POST http://gpu.example:11434/api/chat HTTP/1.1\r\n")


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
async def test_a_proxy_may_itself_speak_tls(authority, tls_port, plain_port, make_pool, tls):
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("proxy.example").configure_cert(own)
    async with OutboundProxy(tls_port if tls else plain_port, tls=own) as proxy:
        context = trusting(authority) if tls else None
        secure = Proxy("https", "proxy.example", proxy.port, tls=trusting(authority))
        pool = make_pool(endpoint(443, tls=context, name="gpu.example"), secure)
        assert [await call(pool) for _ in range(2)] == [OK] * 2
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("status", [b"HTTP/1.1 407 Proxy Authentication Required", b"HTTP/1.1 502 Bad Gateway"])
async def test_b1_a_proxy_that_opens_no_tunnel_makes_a_backend_unreachable(authority, make_pool, status):
    async with OutboundProxy(refuses=status) as proxy:
        pool = make_pool(endpoint(443, tls=trusting(authority), name="gpu.example"), through(proxy))
        with pytest.raises(Unreachable):
            await call(pool)


async def test_b1_a_proxy_that_hangs_is_given_up_within_the_time_to_connect(authority, make_pool):
    async with OutboundProxy(hangs=True) as proxy:
        pool = make_pool(endpoint(443, tls=trusting(authority), name="gpu.example", seconds=0.2), through(proxy))
        with pytest.raises(Unreachable):
            await call(pool)


async def test_the_certificate_behind_a_tunnel_must_be_the_backends(authority, tls_port, make_pool):
    async with OutboundProxy(tls_port) as proxy:
        pool = make_pool(endpoint(443, tls=trusting(authority), name="other.example"), through(proxy))
        with pytest.raises(Unreachable):
            await call(pool)


async def test_b14_proxies_of_the_environment_are_not_used(plain_port, make_pool, monkeypatch):
    async with OutboundProxy(hangs=True) as trap:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
        assert await call(make_pool(endpoint(plain_port))) == OK
    assert not trap.heads


# HTTP/2


@pytest.fixture
async def http2_port(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("gpu.example").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    Http2Server.connections = Http2Server.gone = 0
    server = await asyncio.get_running_loop().create_server(Http2Server, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


def asking(path):
    return (b"POST %b HTTP/1.1\r\nhost: gpu.example\r\ncontent-length: 4\r\n\r\n" % path, b"body")


async def test_http2_is_spoken_where_it_is_offered(authority, http2_port, make_pool):
    pool = make_pool(endpoint(http2_port, tls=trusting(authority), name="gpu.example"), http2=True)
    for path in (b"/one", b"/two"):
        answer = await pool.exchange(asking(path))
        assert (answer.status, answer.header(b"content-type")) == (200, b"application/x-ndjson")
        assert await whole_body(answer) == b"{}\n" + path
        assert answer.at_end
        answer.close()
    assert Http2Server.connections == 1


async def test_http2_b10_a_call_that_is_left_closes_its_connection_and_no_others(authority, http2_port, make_pool):
    pool = make_pool(endpoint(http2_port, tls=trusting(authority), name="gpu.example"), http2=True)
    left, other = await asyncio.gather(pool.exchange(asking(b"/hang")), pool.exchange(asking(b"/hang")))
    assert [await answer.read() for answer in (left, other)] == [b"{}\n"] * 2
    left.close()
    while not Http2Server.gone:
        await asyncio.sleep(0.01)
    assert (Http2Server.connections, Http2Server.gone) == (2, 1)
    other.close()


async def test_a_server_without_http2_is_spoken_to_without_it(authority, tls_port, make_pool):
    assert await call(make_pool(endpoint(tls_port, tls=trusting(authority), name="gpu.example"), http2=True)) == OK


# The certificate of the gateway


def pair(authority, name="gateway"):
    issued = authority.issue_cert(name)
    return "".join(blob.bytes().decode() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes().decode()


@pytest.fixture
async def demanding_port(authority):
    """A server that talks only to those whose certificate is of the authority."""
    server = await tls_server(authority, WHOLE, "gpu.example", asks=True)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize("transport", [wire, via_httpx], ids=["wire", "httpx"])
async def test_a_client_certificate_opens_a_server_that_asks_for_one(authority, demanding_port, transport):
    certificate, key = pair(authority)
    authority_pem = authority.cert_pem.bytes().decode()
    backend = Backend(1, "one", f"https://gpu.example:{demanding_port}", True, 1, None, "httpx", authority_pem)
    for fields in ({"client_certificate": certificate, "client_key": key}, {}):
        shown = Backend(*(getattr(backend, name) for name in list(Backend.__slots__)[:8]), **fields)
        pool = transport.Pool(endpoint(demanding_port, tls=context_for(shown), name="gpu.example"))
        if fields:
            assert await call(pool) == OK
        else:
            # TLS 1.3 tells a client that its certificate is missing after it has sent its request.
            with pytest.raises((BrokenAnswer, Unreachable)):
                await call(pool)
        pool.close()
        await asyncio.sleep(0.01)


def test_a_key_that_is_not_the_certificates_is_refused(authority):
    certificate, _ = pair(authority)
    _, other = pair(authority)
    with pytest.raises(ssl.SSLError):
        load_pair(ssl.create_default_context(), certificate, other)
    with pytest.raises((ssl.SSLError, ValueError)):
        load_pair(ssl.create_default_context(), certificate, "")


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"proxy_url": "http://proxy.example:3128"}, {"http2": True}])
def test_wire_is_refused_what_it_cannot_do(fields):
    row = BackendRow(name="one", url="http://10.0.0.5:11434", transport="wire", **fields)
    with pytest.raises(ValidationError, match="need the transport httpx"):
        row.full_clean()
    row.transport = "httpx"
    row.full_clean()
