"""N7: bodies that nobody wants are neither buffered nor allowed to hide the answer."""

import time

POST = b"POST %s HTTP/1.1\r\nHost: t\r\n"


def pour(wire, limit):
    """Send until the server takes no more for half a second; what it took."""
    wire.sock.settimeout(0.5)
    block = b"a" * 65536
    sent = 0
    while sent < limit:
        try:
            sent += wire.sock.send(block)
        except (TimeoutError, ConnectionError):
            break
    wire.sock.settimeout(20)
    return sent


def test_n7_a_body_that_is_not_read_is_not_buffered(server):
    before = server.rss()
    with server.wire() as wire:
        wire.send(POST % b"/never-read" + b"Content-Length: 1073741824\r\n\r\n")
        sent = pour(wire, 200_000_000)
        grown = server.rss() - before
        print(f"{sent >> 10} KiB taken by kernel and process, RSS grew by {grown >> 10} KiB")
        assert sent < 32_000_000
        assert grown < 4_000_000
        server.ask("/_release")
        assert wire.answer().status == 413


def test_n7_a_chunked_body_that_is_not_read_is_not_buffered(server):
    before = server.rss()
    with server.wire() as wire:
        wire.send(POST % b"/never-read" + b"Transfer-Encoding: chunked\r\n\r\n10000000\r\n")
        pour(wire, 200_000_000)
        assert server.rss() - before < 4_000_000


def test_n7_chunks_of_one_byte_are_bounded_too(server):
    before = server.rss()
    with server.wire() as wire:
        wire.send(POST % b"/never-read" + b"Transfer-Encoding: chunked\r\n\r\n")
        wire.sock.settimeout(0.5)
        block = b"1\r\na\r\n" * 10_000
        for _ in range(500):
            try:
                wire.send(block)
            except TimeoutError:
                break
        assert server.rss() - before < 16_000_000


def test_n7_refusing_a_declared_gigabyte(server):
    before = server.rss()
    with server.wire() as wire:
        started = time.monotonic()
        wire.send(POST % b"/unread" + b"Content-Length: 1073741824\r\n\r\n" + b"a" * 1_000_000)
        answer = wire.answer()
        assert time.monotonic() - started < 1
        assert (answer.status, answer.body) == (401, b"not for you")
        assert answer.headers["connection"] == "close"
        pour(wire, 300_000_000)
        assert wire.closed()
    assert server.rss() - before < 16_000_000


def test_n7_the_answer_survives_a_client_that_sends_on(server):
    """Closing at once would make the kernel answer the rest with a reset, which some clients notice first."""
    with server.wire() as wire:
        wire.send(POST % b"/unread" + b"Content-Length: 60000\r\n\r\n")
        server.saw("request", "/unread")
        wire.more()
        for _ in range(6):
            wire.send(b"a" * 10_000)
            time.sleep(0.02)
        assert wire.answer().status == 401
        assert wire.ended_cleanly()


def test_n7_lingering_ends(quick_server):
    with quick_server.wire() as wire:
        wire.send(POST % b"/unread" + b"Content-Length: 60000\r\n\r\n")
        assert wire.answer().status == 401
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                wire.send(b"a")
            except ConnectionError:
                break
            time.sleep(0.05)
        assert time.monotonic() < deadline


def test_n7_what_follows_an_unread_body_is_never_a_request(server):
    with server.wire() as wire:
        wire.send(POST % b"/unread" + b"Content-Length: 100\r\n\r\n")
        assert wire.answer().status == 401
        try:
            wire.send(b"a" * 100 + b"GET /second HTTP/1.1\r\nHost: t\r\n\r\n")
        except ConnectionError:
            pass
        assert wire.closed()
    assert [entry["path"] for entry in server.seen()] == ["/unread"]


def test_n7_a_small_unread_body_that_is_there_already_keeps_the_connection(server):
    with server.wire() as wire:
        request = POST % b"/unread" + b"Content-Length: 4\r\n\r\nabcd"
        assert wire.send(request).answer().status == 401
        assert wire.send(request).answer().status == 401


def test_n7_a_large_body_is_read_whole(server):
    with server.wire() as wire:
        wire.send(POST % b"/echo" + b"Content-Length: 5000000\r\n\r\n" + b"a" * 5_000_000)
        assert len(wire.answer().json()["body"]) == 5_000_000
        chunks = b"ffff\r\n" + b"b" * 0xFFFF + b"\r\n"
        wire.send(POST % b"/echo" + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 20 + b"0\r\n\r\n")
        assert wire.answer().json()["body"] == "b" * 0xFFFF * 20


def test_n7_100_continue_is_sent_when_the_application_reads(server):
    with server.wire() as wire:
        wire.send(POST % b"/echo" + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert wire.answer().status == 100
        assert wire.send(b"abcd").answer().json()["body"] == "abcd"
        wire.send(POST % b"/echo" + b"Content-Length: 0\r\n\r\n")
        assert wire.answer().status == 200


def test_n7_no_100_continue_if_the_application_refuses(server):
    with server.wire() as wire:
        wire.send(POST % b"/unread" + b"Content-Length: 4\r\nExpect: 100-Continue\r\n\r\n")
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert wire.closed()
