"""The parts that need no socket: caps, the sweeper's clock, options, the hand-over to WebSockets."""

import asyncio
from ipaddress import ip_network
from types import SimpleNamespace

import pytest

from gateway_site.server import ServerOptions
from gateway_site.server.connections import Connections
from gateway_site.server.protocol import GatewayProtocol
from gateway_site.server.request_head import PLAIN_NAMES, valid_host


@pytest.fixture
async def connections():
    options = ServerOptions(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    return Connections(options, asyncio.get_running_loop())


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002::/64"),
        ("2001:db8:1:2::1", "20010db800010002::/64"),
        ("fe80::1%eth0", "fe80000000000000::/64"),
        ("::1", "0::/64"),
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("fd12::1", None),
    ],
)
async def test_n9_whom_a_connection_counts_for(connections, address, caller):
    assert connections.counted_as(address) == caller


async def test_n9_places_are_given_back(connections):
    assert connections.admit("a")
    assert connections.admit("a")
    connections.release("a")
    connections.release("a")
    assert (connections.by_address, connections.admitted) == ({}, 0)


async def test_n5_a_process_that_was_stopped_does_not_age_its_clients(connections):
    connections._swept_at -= 1000
    connections._sweep()
    connections.stop()
    assert connections.now == 2 * connections.options.sweep_seconds


async def test_l5_one_broken_connection_does_not_stop_the_sweep(connections, caplog):
    swept = []
    aborted = []

    def break_down(elapsed):
        raise RuntimeError("on purpose")

    broken = SimpleNamespace(sweep=break_down, transport=SimpleNamespace(abort=lambda: aborted.append(True)))
    connections.open = [broken, SimpleNamespace(sweep=swept.append)]
    connections._sweep()
    connections.stop()
    assert len(swept) == len(aborted) == 1


async def test_known_hosts_are_bounded(connections):
    for number in range(3000):
        connections.remember_host(b"%d" % number)
    assert len(connections.known_hosts) <= 1024


def test_plain_names_are_lower_case_and_mean_nothing_to_the_server():
    assert all(name == name.lower() and b"_" not in name for name in PLAIN_NAMES.values())
    assert not {b"host", b"connection", b"upgrade", b"expect", b"transfer-encoding"} & set(PLAIN_NAMES.values())


@pytest.mark.parametrize("host", [b"a" * 256, b"a\n", b"[::1]x", b"a:80\n"])
def test_n4_hosts_that_a_request_could_not_even_carry(host):
    assert not valid_host(host)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"workers": 0}, {"header_seconds": 0}, {"tls_key": "x"}, {"max_connections": -1}]
)
def test_options_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError):
        ServerOptions(**wrong)


class FakeTransport(asyncio.Transport):
    def __init__(self):
        self.written = b""
        self.protocol = None

    def get_extra_info(self, name, default=None):
        return {"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)}.get(name, default)

    def write(self, data):
        self.written += data

    def set_protocol(self, protocol):
        self.protocol = protocol

    def can_write_eof(self):
        return False

    def is_closing(self):
        return False


class FakeWebSocket(asyncio.Protocol):
    def __init__(self, config, server_state, app_state):
        self.data = b""
        self.lost = False
        self.handshake_complete = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data

    def connection_lost(self, exc):
        self.lost = True


HANDSHAKE = (
    b"GET /ws/live?a=b HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"X_Forwarded_For: 1\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def connect(connections, websocket):
    config = SimpleNamespace(loaded_app=None, ws_protocol_class=websocket)
    state = SimpleNamespace(tasks=set(), connections=set())
    protocol = GatewayProtocol(config, state, {}, connections)
    protocol.connection_made(FakeTransport())
    return protocol


async def test_websocket_handshakes_are_handed_over(connections):
    protocol = connect(connections, FakeWebSocket)
    protocol.data_received(HANDSHAKE)
    taken = protocol.transport.protocol
    assert protocol.transport.written == b""
    assert taken.websocket.data == (
        b"GET /ws/live?a=b HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: k\r\nsec-websocket-version: 13\r\n\r\n"
    )
    # It still has its place among the connections, until it ends.
    assert connections.by_address == {"192.0.2.1": 1}
    taken.websocket.handshake_complete = True
    taken.data_received(b"frame")
    assert taken.websocket.data.endswith(b"frame")
    taken.connection_lost(None)
    assert taken.websocket.lost
    assert connections.by_address == {}


@pytest.mark.parametrize("size", [1, 4000, 6000, 100_000])
async def test_n4_what_comes_before_the_answer_to_a_websocket_handshake_is_dropped(connections, size):
    protocol = connect(connections, FakeWebSocket)
    protocol.data_received(HANDSHAKE + b"x" * size)
    taken = protocol.transport.protocol
    taken.data_received(b"x" * size)
    assert taken.websocket.data.endswith(b"sec-websocket-version: 13\r\n\r\n")
    assert len(protocol.backlog) == 0
    taken.websocket.handshake_complete = True
    taken.data_received(b"frame")
    assert taken.websocket.data.endswith(b"13\r\n\r\nframe")


async def test_n4_websockets_elsewhere_or_without_their_library_are_refused(connections):
    for request, websocket in ((HANDSHAKE.replace(b"/ws/", b"/api/"), FakeWebSocket), (HANDSHAKE, None)):
        protocol = connect(connections, websocket)
        protocol.data_received(request)
        assert protocol.transport.written.startswith(b"HTTP/1.1 400 ")
        assert protocol.transport.protocol is None


async def test_n5_a_first_byte_does_not_prolong_the_time_since_connect(connections):
    protocol = connect(connections, None)
    connections.now += 5
    protocol.data_received(b"GE")
    assert protocol.since == 0
