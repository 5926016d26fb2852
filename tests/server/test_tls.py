"""The same rows over TLS, where a transport cannot be half-closed."""

import socket
import ssl
import time

import pytest
import trustme
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from .wire import PATIENCE, Wire


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path):
    return tmp_path / "chain.pem", tmp_path / "key.pem"


@pytest.fixture
def tls_server(start_server, authority, files):
    chain, key = files
    issue(authority, chain, key)
    return start_server(
        tls_certificate=str(chain), tls_key=str(key), header_seconds=1, linger_seconds=0.3, renewal_seconds=0.05
    )


def issue(authority, chain, key, kind=trustme.KeyType.ECDSA):
    """A new pair for localhost, one file after the other. Its serial number."""
    certificate = authority.issue_cert("localhost", key_type=kind)
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number


def encrypted(wire, authority, **options):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    wire.sock = context.wrap_socket(wire.sock, server_hostname="localhost" if context.check_hostname else None)
    return wire


@pytest.fixture
def tls_wire(tls_server, authority):
    wire = encrypted(Wire(tls_server.port), authority)
    yield wire
    wire.sock.close()


def serial_shown(server, authority, **options):
    wire = encrypted(Wire(server.port), authority, **options)
    shown = load_der_x509_certificate(wire.sock.getpeercert(binary_form=True)).serial_number
    wire.sock.close()
    return shown


def until(is_so, what):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def until_shown(serial, server, authority):
    until(lambda: serial_shown(server, authority) == serial, "the new certificate is not shown")


def told(server, text):
    """How many lines of its log have it."""
    return sum(text in line for line in list(server.errors))


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


def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(tls_server, tls_wire, authority, files):
    until_shown(issue(authority, *files), tls_server, authority)
    assert tls_wire.send(b"GET /echo HTTP/1.1\r\nHost: t\r\n\r\n").answer().status == 200


@pytest.mark.parametrize("kinds", [("RSA", "ECDSA"), ("ECDSA", "RSA")], ids=" then ".join)
def test_a_certificate_of_another_kind_takes_the_place_of_the_old_one(tls_server, authority, files, kinds):
    for kind in kinds:
        renewed = issue(authority, *files, trustme.KeyType[kind])
        until_shown(renewed, tls_server, authority)
        # Whatever the client speaks, and whether it says whom it wants or not.
        assert serial_shown(tls_server, authority, maximum_version=ssl.TLSVersion.TLSv1_2) == renewed
        assert serial_shown(tls_server, authority, check_hostname=False) == renewed


def test_while_a_renewal_is_half_written_the_old_certificate_serves_on(tls_server, authority, files):
    chain, key = files
    before = serial_shown(tls_server, authority)
    kept = key.read_bytes()
    renewed = issue(authority, chain, key)
    until_shown(renewed, tls_server, authority)
    until(lambda: told(tls_server, "was renewed"), "it is not told that it was renewed")
    for content in (kept, b"", b"hello"):
        so_far = told(tls_server, "is not renewed")
        # In one step, so that it is told of once.
        written = key.with_suffix(".new")
        written.write_bytes(content)
        written.replace(key)
        until(lambda so_far=so_far: told(tls_server, "is not renewed") > so_far, "it was not looked at")
        for _ in range(5):
            assert serial_shown(tls_server, authority) == renewed
    key.unlink()
    until_shown(issue(authority, chain, key), tls_server, authority)
    assert renewed != before
