"""N5 and N6: who is too slow is ended, in the state he is slow in, and nobody else."""

import time

from .conftest import QUICK

POST = b"POST /echo HTTP/1.1\r\nHost: t\r\n"


def test_n5_saying_nothing_is_answered_408(quick_server):
    with quick_server.wire() as wire:
        answer = wire.answer()
        assert (answer.status, answer.headers["x-gateway-error"]) == (408, "slow_request")
        assert wire.closed()


def test_n5_headers_must_be_complete_in_time_however_often_a_byte_comes(quick_server):
    with quick_server.wire() as wire:
        started = time.monotonic()
        wire.send(b"GET /echo HTTP/1.1\r\n")
        while wire.silent():
            wire.send(b"X: a\r\n")
            time.sleep(0.02)
            assert time.monotonic() < started + 10 * QUICK["header_seconds"]
        assert wire.answer().status == 408
        assert time.monotonic() >= started + QUICK["header_seconds"] * 0.9
        assert wire.closed()
    assert quick_server.seen() == []


def test_n5_line_breaks_before_a_request_buy_no_time(quick_server):
    with quick_server.wire() as wire:
        deadline = time.monotonic() + 10 * QUICK["header_seconds"]
        while wire.silent():
            wire.send(b"\r\n")
            time.sleep(0.02)
            assert time.monotonic() < deadline
        assert wire.answer().status == 408


def test_n5_the_next_request_has_the_same_time_for_its_headers(quick_server):
    with quick_server.wire() as wire:
        assert wire.send(POST + b"Content-Length: 0\r\n\r\n").answer().status == 200
        wire.send(b"GET /sec")
        assert wire.answer().status == 408
        assert wire.closed()


def test_n5_an_idle_connection_is_closed_without_a_word(quick_server):
    with quick_server.wire() as wire:
        wire.send(POST + b"Content-Length: 0\r\n\r\n").answer()
        started = time.monotonic()
        assert wire.closed()
        assert time.monotonic() >= started + QUICK["keepalive_seconds"] * 0.9


def test_n5_a_slow_body_is_answered_408(quick_server):
    with quick_server.wire() as wire:
        wire.send(POST + b"Content-Length: 100000\r\n\r\n")
        while wire.silent():
            wire.send(b"a")
            time.sleep(0.02)
        answer = wire.answer()
        assert (answer.status, answer.headers["x-gateway-error"]) == (408, "slow_request")
        assert wire.closed()
    quick_server.saw("gone", "/echo")
    quick_server.saw("callback", "/echo")


def test_n5_a_chunked_body_of_nothing_but_extensions_is_slow(quick_server):
    with quick_server.wire() as wire:
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n1;")
        while wire.silent():
            wire.send(b"extension")
            time.sleep(0.02)
        assert wire.answer().status == 408


def test_n5_a_body_above_the_rate_may_take_longer_than_the_grace(quick_server):
    seconds = 4 * QUICK["body_grace_seconds"]
    with quick_server.wire() as wire:
        wire.send(POST + b"Content-Length: %d\r\n\r\n" % (1000 * 20))
        for _ in range(20):
            wire.send(b"a" * 1000)
            time.sleep(seconds / 20)
        assert len(wire.answer().json()["body"]) == 20_000


def test_n5_a_long_answer_has_no_deadline(quick_server):
    with quick_server.wire() as wire:
        wire.send(b"GET /head-first HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(2 * max(QUICK["header_seconds"], QUICK["body_grace_seconds"]))
        quick_server.ask("/_release")
        assert wire.answer().body == b"late"


def test_n5_an_application_that_does_not_read_is_not_the_clients_fault(quick_server):
    with quick_server.wire() as wire:
        wire.send(b"POST /never-read HTTP/1.1\r\nHost: t\r\nContent-Length: 10000000\r\n\r\n" + b"a" * 2_000_000)
        quick_server.saw("holding", "/never-read")
        time.sleep(2 * QUICK["body_grace_seconds"])
        quick_server.ask("/_release")
        assert wire.answer().status == 413


def test_n5_a_client_that_waits_for_100_continue_is_not_slow(quick_server):
    with quick_server.wire() as wire:
        wire.send(b"POST /never-read HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        time.sleep(2 * QUICK["body_grace_seconds"])
        assert wire.silent()
        quick_server.ask("/_release")
        assert wire.answer().status == 413


def test_n6_a_reader_that_stopped_is_cut(quick_server):
    with quick_server.wire(receive_buffer=4096) as wire:
        wire.send(b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n")
        gone = quick_server.saw("gone", "/endless")
        # The kernel's buffers on loopback hold a few MiB; the process adds at most its 64 KiB and a chunk.
        assert gone["sent"] < 16 * 1024 * 1024


def test_n6_a_slow_reader_that_makes_progress_is_kept(quick_server):
    with quick_server.wire(receive_buffer=65536) as wire:
        wire.send(b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n")
        deadline = time.monotonic() + 3 * QUICK["stall_seconds"]
        while time.monotonic() < deadline:
            for _ in range(20):
                assert wire.more(), "cut while reading"
            time.sleep(0.05)
    quick_server.saw("gone", "/endless")


def test_n6_stalled_readers_cost_little_memory(start_server):
    server = start_server(max_connections_per_address=1000, stall_seconds=60)
    before = server.rss()
    readers = [server.wire(receive_buffer=4096) for _ in range(50)]
    for reader in readers:
        reader.send(b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n")
    time.sleep(1)
    grown = (server.rss() - before) / len(readers)
    print(f"{grown / 1024:.0f} KiB for each stalled reader")
    assert grown < 256 * 1024
    for reader in readers:
        reader.sock.close()
    while server.ask("/_process")["descriptors"] > 30:
        time.sleep(0.05)
