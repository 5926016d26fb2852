"""N9: who opens too many connections is told so, and the others do not notice."""

import socket
import time

import pytest

GET = b"GET /echo HTTP/1.1\r\nHost: t\r\n\r\n"


def crowd(server, count, source="127.0.0.1"):
    wires = [server.wire(source=source) for _ in range(count)]
    answers = [wire.send(GET).answer() for wire in wires]
    return wires, answers


def close(wires):
    for wire in wires:
        wire.sock.close()


def test_n9_one_address_has_its_share_and_others_theirs(start_server):
    server = start_server(max_connections_per_address=5)
    wires, answers = crowd(server, 8, "127.0.0.2")
    assert [answer.status for answer in answers] == [200] * 5 + [503] * 3
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].headers["x-gateway-error"] == "too_many_connections"
    assert all(wire.closed() for wire in wires[5:])
    others, answers = crowd(server, 5, "127.0.0.3")
    assert {answer.status for answer in answers} == {200}
    close(wires + others)


def test_n9_a_closed_connection_gives_its_place_back(start_server):
    server = start_server(max_connections_per_address=3)
    for _ in range(5):
        wires, answers = crowd(server, 3, "127.0.0.2")
        assert {answer.status for answer in answers} == {200}
        close(wires)
        deadline = time.monotonic() + 10
        while server.ask("/_process")["descriptors"] > 20 and time.monotonic() < deadline:
            time.sleep(0.01)


def test_n9_trusted_proxies_have_no_cap_of_their_own(start_server):
    server = start_server(max_connections_per_address=3, trusted_proxies=["127.0.0.2/32", "::1/128"])
    wires, answers = crowd(server, 10, "127.0.0.2")
    assert {answer.status for answer in answers} == {200}
    close(wires)


def test_n9_total(start_server):
    server = start_server(max_connections=6)
    wires, answers = crowd(server, 6, "127.0.0.2")
    assert {answer.status for answer in answers} == {200}
    with server.wire(source="127.0.0.3") as wire:
        answer = wire.send(GET).answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert wire.closed()
    # Those who are in are served.
    assert all(wire.send(GET).answer().status == 200 for wire in wires)
    close(wires)


def test_n9_near_the_descriptor_limit_the_answer_is_503(start_server):
    server = start_server(descriptors=200, max_connections_per_address=10_000)
    wires = [server.wire() for _ in range(150)]
    statuses = []
    for wire in wires:
        try:
            statuses.append(wire.send(GET).answer().status)
        except (EOFError, ConnectionError):
            statuses.append(None)
    assert statuses[:36] == [200] * 36
    assert 503 in statuses[36:]
    assert 200 not in statuses[36:]
    close(wires)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with server.wire() as wire:
            if wire.send(GET).answer().status == 200:
                break
        time.sleep(0.05)
    assert time.monotonic() < deadline
    assert server.process.poll() is None


def test_n9_a_flood_of_refused_connections_is_survived(start_server):
    server = start_server(max_connections_per_address=4)
    for _ in range(5):
        wires = [server.wire(source="127.0.0.2") for _ in range(300)]
        close(wires)
    with server.wire() as wire:
        assert wire.send(GET).answer().status == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_n9_ipv6_is_served(start_server):
    try:
        server = start_server(host="::1")
    except EOFError:
        pytest.skip("no IPv6 loopback here")
    with server.wire(host="::1") as wire:
        assert wire.send(GET).answer().status == 200
