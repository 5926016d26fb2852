"""N10: one request at a time, in order; and how the application learns that the client has left."""

import socket
import time

from .conftest import QUICK

GET = b"GET %s HTTP/1.1\r\nHost: t\r\n\r\n"


def test_n10_pipelined_requests_are_answered_in_order_one_at_a_time(server):
    with server.wire() as wire:
        wire.send(b"".join(GET % b"/%d" % number for number in range(100)))
        assert [wire.answer().json()["path"] for _ in range(100)] == [f"/{number}" for number in range(100)]
    kinds = [entry["kind"] for entry in server.seen()]
    assert kinds == ["request", "body"] * 100


def test_n10_a_pipelined_request_waits_for_the_one_before(server):
    with server.wire() as wire:
        wire.send(GET % b"/hold" + GET % b"/second")
        server.saw("holding", "/hold")
        assert [entry["path"] for entry in server.seen()] == ["/hold", "/hold"]
        server.ask("/_release")
        assert wire.answer().body == b"held"
        assert wire.answer().json()["path"] == "/second"


def test_n10_bodies_between_pipelined_requests(server):
    post = b"POST /%d HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n%03d\r\n0\r\n\r\n"
    with server.wire() as wire:
        wire.send(b"".join(post % (number, number) for number in range(20)))
        assert [wire.answer().json()["body"] for _ in range(20)] == [f"{number:03}" for number in range(20)]


def test_n10_requests_sent_ahead_without_end_are_not_gathered(server):
    before = server.rss()
    with server.wire() as wire:
        wire.send(GET % b"/hold")
        server.saw("holding", "/hold")
        wire.sock.settimeout(0.5)
        try:
            for _ in range(2000):
                wire.send(GET % b"/ahead" * 400)
        except (TimeoutError, ConnectionError):
            pass
        assert server.rss() - before < 4_000_000
        assert [entry["path"] for entry in server.seen()] == ["/hold", "/hold"]


def test_n10_thousands_of_requests_in_one_go_are_answered(server):
    before = server.rss()
    with server.wire() as wire:
        wire.send(GET % b"/hold")
        server.saw("holding", "/hold")
        # All of them are in the kernel's buffer when reading goes on: one read brings many.
        wire.send(b"GET / HTTP/1.1\r\nHost:t\r\n\r\n" * 3000)
        server.ask("/_release")
        assert wire.answer().body == b"held"
        assert all(wire.answer().status == 200 for _ in range(3000))
    assert server.rss() - before < 16_000_000


def test_n10_a_body_and_hundreds_of_requests_in_one_read_are_refused_in_order(server):
    with server.wire() as wire:
        wire.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5000\r\n\r\n")
        server.saw("request", "/echo")
        wire.send(b"a" * 5000 + b"GET / HTTP/1.1\r\nHost:t\r\n\r\n" * 1000)
        assert len(wire.answer().json()["body"]) == 5000
        statuses = [wire.answer().status]
        while statuses[-1] == 200 and len(statuses) < 1000:
            statuses.append(wire.answer().status)
        assert statuses[-1] in (200, 400)


def test_n10_a_head_that_waits_behind_a_full_pipeline_is_not_slow(quick_server):
    with quick_server.wire() as wire:
        wire.send(GET % b"/hold" + GET % b"/ahead" * 10 + b"GET /last HTTP/1.1\r\nHo")
        quick_server.saw("holding", "/hold")
        time.sleep(2 * QUICK["header_seconds"])
        quick_server.ask("/_release")
        assert [wire.answer().status for _ in range(11)] == [200] * 11
        assert wire.send(b"st: t\r\n\r\n").answer().json()["path"] == "/last"


def test_n10_a_stalled_reader_that_half_closes_has_left(server):
    with server.wire(receive_buffer=4096) as wire:
        wire.send(GET % b"/endless")
        server.saw("request", "/endless")
        time.sleep(0.3)
        wire.sock.shutdown(socket.SHUT_WR)
        server.saw("gone", "/endless")


def test_n10_what_follows_connection_close_is_dropped(server):
    with server.wire() as wire:
        wire.send(b"GET /first HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n" + GET % b"/second")
        assert wire.answer().headers["connection"] == "close"
        assert wire.closed()
    assert {entry["path"] for entry in server.seen()} == {"/first"}


def test_n10_half_close_counts_as_leaving(server):
    with server.wire() as wire:
        wire.send(GET % b"/hold")
        server.saw("holding", "/hold")
        wire.sock.shutdown(socket.SHUT_WR)
        assert server.saw("gone", "/hold")["message"] == "http.disconnect"
        assert wire.closed()
    assert [entry["kind"] for entry in server.seen()] == ["request", "holding", "callback", "gone"]


def test_n10_close_counts_as_leaving(server):
    with server.wire() as wire:
        wire.send(GET % b"/hold")
        server.saw("holding", "/hold")
    assert server.saw("gone", "/hold")["message"] == "http.disconnect"
    assert [entry["kind"] for entry in server.seen()] == ["request", "holding", "callback", "gone"]


def test_n10_leaving_in_the_middle_of_the_body(server):
    with server.wire() as wire:
        wire.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
        server.saw("request", "/echo")
    server.saw("gone", "/echo")
    assert [entry["kind"] for entry in server.seen()] == ["request", "callback", "gone"]


def test_n10_leaving_while_nothing_is_read_from_the_connection(server):
    """With requests queued, or a body unread, reading is paused and the kernel must be asked."""
    with server.wire() as wire:
        wire.send(GET % b"/hold" + GET % b"/ahead" * 20)
        server.saw("holding", "/hold")
    server.saw("gone", "/hold")
    with server.wire() as wire:
        wire.send(b"POST /never-read HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 200_000)
        server.saw("holding", "/never-read")
    server.saw("callback", "/never-read")


def test_n10_requests_queued_behind_a_departed_client_are_not_begun(server):
    with server.wire() as wire:
        wire.send(GET % b"/hold" + GET % b"/second")
        server.saw("holding", "/hold")
    server.saw("gone", "/hold")
    assert {entry["path"] for entry in server.seen()} == {"/hold"}


def test_n10_sending_to_a_departed_client_is_silent(server):
    with server.wire() as wire:
        wire.send(GET % b"/keep-sending")
        server.saw("request", "/keep-sending")
    assert server.saw("survived", "/keep-sending")["called_at_once"]


def test_n10_no_call_back_after_a_complete_answer(server):
    with server.wire() as wire:
        wire.send(GET % b"/echo").answer()
    time.sleep(0.2)
    assert "callback" not in {entry["kind"] for entry in server.seen()}
