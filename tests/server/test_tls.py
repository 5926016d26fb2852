"""The same rows over TLS, where a transport cannot be half-closed."""

import socket
import ssl

import pytest
import trustme

from .wire import PATIENCE, Wire


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(start_server, authority, tmp_path):
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return start_server(tls_certificate=str(chain), tls_key=str(key), header_seconds=1, linger_seconds=0.3)


@pytest.fixture
def tls_wire(tls_server, authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    wire = Wire(tls_server.port)
    wire.sock = context.wrap_socket(wire.sock, server_hostname="localhost")
    yield wire
    wire.sock.close()


def test_requests_and_refusals(tls_wire):
    assert tls_wire.send(b"GET /echo HTTP/1.1\r\nHost: t\r\n\r\n").answer().status == 200
    assert tls_wire.send(b"GET /echo HTTP/1.1\r\nHost : t\r\n\r\n").answer().status == 400
    assert tls_wire.closed()


def test_n5_saying_nothing_is_answered_408(tls_wire):
    assert tls_wire.answer().status == 408
    assert tls_wire.closed()


def test_n5_a_handshake_has_the_same_deadline(tls_server):
    with socket.create_connection(("127.0.0.1", tls_server.port), timeout=PATIENCE) as sock:
        assert sock.recv(1) == b""


def test_n7_the_answer_to_an_unread_body(tls_wire):
    tls_wire.send(b"POST /unread HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n" + b"a" * 50_000)
    assert tls_wire.answer().status == 401
    assert tls_wire.closed()
