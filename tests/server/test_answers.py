"""What the server makes of what the application sends."""

import pytest

GET = b"GET %s HTTP/1.1\r\nHost: t\r\n\r\n"


def test_a_whole_answer_needs_no_chunks(server):
    with server.wire() as wire:
        answer = wire.send(GET % b"/echo").answer()
    assert set(answer.headers) == {"content-length"}


def test_a_stream_is_chunked_one_chunk_a_message(server):
    with server.wire() as wire:
        wire.send(GET % b"/stream")
        head = wire.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert [wire.chunk() for _ in range(6)] == [b"chunk %d\n" % number for number in range(5)] + [b""]
        assert wire.send(GET % b"/echo").answer().status == 200


def test_a_head_without_body_goes_out_at_once(server):
    with server.wire() as wire:
        wire.send(GET % b"/head-first")
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        assert wire.silent()
        server.ask("/_release")
        assert wire.chunked() == b"late"


def test_http_1_0_gets_a_stream_without_chunks(server):
    with server.wire() as wire:
        answer = wire.send(b"GET /stream HTTP/1.0\r\nHost: t\r\n\r\n").answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"".join(b"chunk %d\n" % number for number in range(5))


def test_http_1_0_connections_are_closed_even_if_asked_to_stay(server):
    with server.wire() as wire:
        answer = wire.send(b"GET /echo HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\n\r\n").answer()
        assert answer.headers["connection"] == "close"
        assert answer.json()["version"] == "1.0"
        assert wire.closed()


def test_head_has_no_body(server):
    with server.wire() as wire:
        wire.send(b"HEAD /echo HTTP/1.1\r\nHost: t\r\n\r\n")
        assert wire.answer("HEAD").status == 200
        assert wire.send(GET % b"/echo").answer().status == 200


def test_an_application_that_fails_answers_500_without_detail(server):
    with server.wire() as wire:
        answer = wire.send(GET % b"/fail").answer()
        assert (answer.status, answer.json()) == (500, {"error": "internal error"})
        assert wire.closed()


def test_an_application_that_fails_midway_never_looks_complete(server):
    with server.wire() as wire:
        wire.send(GET % b"/fail-midway")
        assert b"0\r\n\r\n" not in wire.rest()


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"], ids=ascii)
def test_p10_header_values_cannot_add_headers(server, value):
    with server.wire() as wire:
        answer = wire.send(
            b"POST /set-header HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(value) + value
        ).answer()
    assert answer.status == 500
    assert not {"set-cookie", "x-note"} & set(answer.headers)


def test_server_and_date_are_left_to_others(server):
    with server.wire() as wire:
        assert not {"server", "date"} & set(wire.send(GET % b"/stream").answer().headers)


def test_a_large_answer_before_the_end_reaches_a_slow_reader_whole(server):
    with server.wire(receive_buffer=65536) as wire:
        head = b"POST /echo HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 3000000\r\n\r\n"
        wire.send(head + b"a" * 3_000_000)
        answer = wire.answer()
        assert len(answer.json()["body"]) == 3_000_000
        assert wire.ended_cleanly()
