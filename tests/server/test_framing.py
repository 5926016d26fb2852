"""N1–N4, N8, P3, P5, P6: which bytes are a request, and what the application gets to see of it."""

import pytest

POST = b"POST /echo HTTP/1.1\r\nHost: t\r\n"
GET = b"GET /echo HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"4\r\nabcd\r\n0\r\n\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: t\r\n\r\n"


def refused(server, request, *statuses):
    """Send `request` with another after it: one refusal comes back, then the end, and the application saw nothing."""
    with server.wire() as wire:
        wire.send(request + SECOND)
        answer = wire.answer()
        assert wire.closed(), "something followed the refusal"
    assert answer.status in statuses, answer
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-gateway-error"]
    assert set(answer.json()) == {"error"}
    assert server.seen() == []
    return answer


def accepted(server, request):
    with server.wire() as wire:
        answer = wire.send(request).answer()
    assert answer.status == 200, answer
    return answer.json()


LENGTHS = [
    *(b"+4", b"-4", b"0x4", b"4,4", b"4, 4", b"4 4", b"", b"4;", b"4.0", b"1_0", b"\xb24", b"4\x0b", b"'4'", b"four"),
    *(b"18446744073709551616", b"99999999999999999999999999"),
]


@pytest.mark.parametrize("value", LENGTHS, ids=ascii)
def test_n1_content_length_must_be_plain_digits(server, value):
    refused(server, POST + b"Content-Length: " + value + b"\r\n\r\nabcd", 400)


ENCODINGS = [
    *(b"identity", b"chunked, identity", b"identity, chunked", b"gzip, chunked", b"gzip", b"chunked, chunked"),
    *(b"xchunked", b"chunkedx", b"\x0bchunked", b'"chunked"', b"", b"chunked;q=1", b",chunked", b"chunked,", b"chunk"),
    *(b"chun\tked", b"deflate, gzip, chunked"),
]


@pytest.mark.parametrize("value", ENCODINGS, ids=ascii)
def test_n1_transfer_encoding_must_be_chunked(server, value):
    refused(server, POST + b"Transfer-Encoding: " + value + b"\r\n\r\n" + BODY, 400)


FRAMINGS = {
    "length then encoding": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "encoding then length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + BODY,
    "two equal lengths": POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "two encodings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "encoding and identity": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + BODY,
    "identity and encoding": POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "chunked on 1.0": b"POST /echo HTTP/1.0\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "chunked on kept 1.0": b"POST /echo HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("request_", FRAMINGS.values(), ids=FRAMINGS)
def test_n1_one_framing_only(server, request_):
    refused(server, request_, 400)


@pytest.mark.parametrize("value", [b"4", b" 4 ", b"\t4", b"04"], ids=ascii)
def test_n1_plain_lengths_are_read(server, value):
    assert accepted(server, POST + b"Content-Length:" + value + b"\r\n\r\nabcd")["body"] == "abcd"


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" chunked "], ids=ascii)
def test_n1_chunked_is_read(server, value):
    assert accepted(server, POST + b"Transfer-Encoding:" + value + b"\r\n\r\n" + BODY)["body"] == "abcd"


HEADS = {
    "folded line": GET + b"Host: t\r\nX: a\r\n b\r\n\r\n",
    "folded host": GET + b"Host: t\r\n u\r\n\r\n",
    "folded with tab": GET + b"Host: t\r\nX: a\r\n\tb\r\n\r\n",
    "space before first header": GET + b" Host: t\r\n\r\n",
    "bare LF everywhere": b"GET /echo HTTP/1.1\nHost: t\n\n",
    "bare LF after a header": GET + b"Host: t\nX: b\r\n\r\n",
    "bare LF at the end": GET + b"Host: t\r\n\n",
    "bare CR in a value": GET + b"Host: t\r\nX: a\rY: b\r\n\r\n",
    "CR CR LF": GET + b"Host: t\r\r\nX: b\r\n\r\n",
    "NUL in a value": GET + b"Host: t\r\nX: a\0b\r\n\r\n",
    "NUL in a name": GET + b"Host: t\r\nX\0Y: a\r\n\r\n",
    "space before the colon": GET + b"Host: t\r\nX : a\r\n\r\n",
    "tab before the colon": GET + b"Host: t\r\nX\t: a\r\n\r\n",
    "space before the colon of a length": POST + b"Content-Length : 4\r\n\r\nabcd",
    "space in a name": GET + b"Host: t\r\nX Y: a\r\n\r\n",
    "no colon": GET + b"Host: t\r\nX\r\n\r\n",
    "empty name": GET + b"Host: t\r\n: a\r\n\r\n",
    "no method": b" /echo HTTP/1.1\r\nHost: t\r\n\r\n",
    "two spaces in the target": b"GET /echo  x HTTP/1.1\r\nHost: t\r\n\r\n",
    "tab for space": b"GET\t/echo\tHTTP/1.1\r\nHost: t\r\n\r\n",
    "HTTP/0.9": b"GET /echo\r\n\r\n",
    "HTTP/2.0": b"GET /echo HTTP/2.0\r\nHost: t\r\n\r\n",
    "HTTP/1.2": b"GET /echo HTTP/1.2\r\nHost: t\r\n\r\n",
    "HTTP/1.10": b"GET /echo HTTP/1.10\r\nHost: t\r\n\r\n",
    "lower-case protocol": b"GET /echo http/1.1\r\nHost: t\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"\x01" * 40,
    **{
        f"control {code:#x} in a value": GET + b"Host: t\r\nX: a" + bytes([code]) + b"b\r\n\r\n"
        for code in (1, 11, 27, 127)
    },
    **{
        f"{chr(code)} in a name": GET + b"Host: t\r\nX" + bytes([code]) + b"Y: a\r\n\r\n"
        for code in b'"(),/;<=>?@[]{}\\\xe9'
    },
}


@pytest.mark.parametrize("request_", HEADS.values(), ids=HEADS)
def test_n2_broken_heads_are_refused(server, request_):
    refused(server, request_, 400)


CHUNKS = [
    *(b"4\nabcd\r\n0\r\n\r\n", b"4\r\nabcd\n0\r\n\r\n", b"4\r\nabcd0\r\n\r\n", b"4\r\nabcdX\r\n0\r\n\r\n"),
    *(b"0x4\r\nabcd\r\n0\r\n\r\n", b"+4\r\nabcd\r\n0\r\n\r\n", b"-4\r\nabcd\r\n", b" 4\r\nabcd\r\n0\r\n\r\n"),
    *(b"4 \r\nabcd\r\n0\r\n\r\n", b"4;\nabcd\r\n0\r\n\r\n", b"4;a\nabcd\r\n0\r\n\r\n", b"4;a\rX\r\nabcd\r\n0\r\n\r\n"),
    *(b"4;a\0\r\nabcd\r\n0\r\n\r\n", b'4;a="\r\nabcd\r\n0\r\n\r\n', b"\r\nabcd", b"G\r\n", b"10000000000000000\r\n"),
    *(b"4\r\nabcd\r\n0\n\n", b"4\r\nabcd\r\n0\r\n\n", b"4\r\nabcd\r\n0\r\nA : b\r\n\r\n", b"4\rabcd\r\n0\r\n\r\n"),
    *(b"4\r\nabcd\r\n0\r\nA: b\r\n c\r\n\r\n", b"4\r\nabcd\r\n0\r\nContent-Length: 5\r\n\r\n"),
    *(b"4\r\nabcd\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nabcd\r\n0\r\nA: b\n\r\n"),
]


@pytest.mark.parametrize("chunks", CHUNKS, ids=ascii)
def test_n2_broken_chunks_are_refused(server, chunks):
    refused(server, CHUNKED + chunks, 400)


def test_n2_a_body_that_breaks_later_never_becomes_whole(server):
    with server.wire() as wire:
        wire.send(CHUNKED + b"4\r\nabcd\r\n")
        server.saw("request", "/echo")
        answer = wire.send(b"zz\r\n" + SECOND).answer()
        assert answer.status == 400
        assert wire.closed()
    server.saw("gone", "/echo")
    assert [entry["kind"] for entry in server.seen()] == ["request", "callback", "gone"]


def test_n2_a_broken_request_is_refused_after_the_good_ones_before_it(server):
    with server.wire() as wire:
        wire.send(GET + b"Host: t\r\n\r\n" + GET + b"Host : t\r\n\r\n" + SECOND)
        assert wire.answer().status == 200
        assert wire.answer().status == 400
        assert wire.closed()
    assert [entry["path"] for entry in server.seen() if entry["kind"] == "request"] == ["/echo"]


def test_n2_chunk_extensions_are_ignored(server):
    assert accepted(server, CHUNKED + b'4;a=b;c="d"\r\nabcd\r\n0;x\r\n\r\n')["body"] == "abcd"


def test_n2_endless_chunk_extension_is_refused(server):
    with server.wire() as wire:
        wire.send(CHUNKED + b"4;" + b"a" * 200_000)
        wire.send(b"a" * 200_000)
        assert wire.answer().status == 400


@pytest.mark.parametrize("value", [b"a\tb", b"a\x80b", b"a\xffb", b""], ids=ascii)
def test_n2_unusual_but_legal_values_pass(server, value):
    seen = accepted(server, GET + b"Host: t\r\nX-Note: " + value + b"\r\n\r\n")
    assert ["x-note", value.decode("latin-1")] in seen["headers"]


def test_n3_trailers_change_nothing(server):
    trailers = b"Authorization: Bearer other\r\nX-Forwarded-For: 9.9.9.9\r\nX-Strange: 1\r\nHost: evil\r\nExpect: x\r\n"
    with server.wire() as wire:
        wire.send(POST + b"Authorization: Bearer mine\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"4\r\nabcd\r\n0\r\n" + trailers + b"\r\n")
        seen = wire.answer().json()
        names = [name for name, _ in seen["headers"]]
        assert names == ["host", "authorization", "transfer-encoding"]
        assert ["authorization", "Bearer mine"] in seen["headers"]
        # Nor the next request.
        assert [name for name, _ in wire.send(SECOND).answer().json()["headers"]] == ["host"]


def test_n3_endless_trailers_are_refused(server):
    with server.wire() as wire:
        wire.send(CHUNKED + b"0\r\n")
        for number in range(4000):
            try:
                wire.send(b"X-%d: %s\r\n" % (number, b"a" * 100))
            except ConnectionError:
                break
        assert wire.answer().status == 400


MALFORMED_HOSTS = [
    *(b"", b"a b", b"a/b", b"u@a", b"a:b", b"a:", b"a:123456", b"[::1", b"[x]", b"a,b c", b"a\x80", b"a?b", b"a#b"),
    *(b"\\", b"a\tb", b"a%2fb"),
]
HOSTS = {
    "none": b"",
    "two": b"Host: t\r\nHost: t\r\n",
    "two in other case": b"Host: t\r\nhOST: u\r\n",
    **{ascii(host): b"Host: " + host + b"\r\n" for host in MALFORMED_HOSTS},
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_n4_exactly_one_well_formed_host(server, hosts):
    refused(server, GET + hosts + b"\r\n", 400)


@pytest.mark.parametrize("host", ["t", "T.example:8080", "127.0.0.1:11434", "[::1]:80", "[fe80::1]", "my_host", "x-y."])
def test_n4_ordinary_hosts_pass(server, host):
    assert ["host", host] in accepted(server, GET + f"Host: {host}\r\n\r\n".encode())["headers"]


def test_n4_http_1_0_needs_a_host_too(server):
    refused(server, b"GET /echo HTTP/1.0\r\n\r\n", 400)


@pytest.mark.parametrize(
    "target", [b"http://t/echo", b"*", b"t:80", b"echo", b"?a", b"https://t:1/", b"/echo#x", b"//user@t:80#"]
)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_n4_only_paths_are_targets(server, method, target):
    refused(server, method + b" " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n", 400)


@pytest.mark.parametrize("target", [b"t:80", b"/echo", b"http://t/", b"*"])
def test_n4_connect_is_refused(server, target):
    refused(server, b"CONNECT " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n", 400, 405)


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "other": b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "list": b"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
    "websocket on another path": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "with a body": b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n",
}


@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
def test_n4_upgrades_are_refused(server, headers):
    refused(server, GET + b"Host: t\r\n" + headers + b"\r\n", 400)


def test_n4_upgrade_without_connection_is_an_ordinary_request(server):
    assert accepted(server, POST + b"Upgrade: h2c\r\nContent-Length: 4\r\n\r\nabcd")["body"] == "abcd"


HANDSHAKE = (
    b"GET /ws/live HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(("with_it", "after_it"), [(0, 0), (100, 0), (6000, 0), (0, 100), (6000, 6000)])
def test_n4_bytes_before_the_answer_to_a_websocket_handshake_do_no_harm(server, with_it, after_it):
    with server.wire() as wire:
        wire.send(HANDSHAKE + b"x" * with_it)
        server.saw("handshake", "/ws/live")
        wire.send(b"x" * after_it)
        server.ask("/_release")
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert not [line for line in server.errors if "Traceback" in line or "Fatal" in line]


def test_n8_header_block(server):
    answer = refused(server, GET + b"Host: t\r\nX: " + b"a" * 33_000 + b"\r\n\r\n", 431)
    assert answer.headers["x-gateway-error"] == "headers_too_large"
    accepted(server, GET + b"Host: t\r\nX: " + b"a" * 32_000 + b"\r\n\r\n")


def test_n8_header_block_of_many_lines(server):
    refused(server, GET + b"Host: t\r\n" + b"X-Note: %s\r\n" % (b"a" * 400) * 90 + b"\r\n", 431)


def test_n8_header_block_in_small_pieces(server):
    with server.wire() as wire:
        wire.send(GET + b"Host: t\r\nX: ")
        for _ in range(60):
            try:
                wire.send(b"a" * 1000)
            except ConnectionError:
                break
        assert wire.answer().status == 431
    assert server.seen() == []


@pytest.mark.parametrize("before", [b"", SECOND], ids=["first", "after another"])
def test_n8_a_huge_head_need_not_be_complete_to_be_refused(server, before):
    with server.wire() as wire:
        wire.send(before)
        if before:
            wire.answer()
        wire.send(GET + b"Host: t\r\nX: " + b"a" * 60_000)
        assert wire.answer().headers["x-gateway-error"] == "headers_too_large"


def test_n8_number_of_headers(server):
    refused(server, GET + b"Host: t\r\n" + b"X: a\r\n" * 100 + b"\r\n", 431)
    refused(server, GET + b"Host: t\r\n" + b"a_b: c\r\n" * 20_000 + b"\r\n", 431)
    accepted(server, GET + b"Host: t\r\n" + b"X: a\r\n" * 99 + b"\r\n")


def test_n8_request_line(server):
    answer = refused(server, b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414)
    assert answer.headers["x-gateway-error"] == "target_too_long"
    refused(server, b"GET /?" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414)
    accepted(server, b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")


PATHS = [
    *("/%2F", "/%2e%2e/api", "/%61pi/tags", "//api//tags", "/./api", "/../api", "/api;x", "/a\\b", "/%00", "/api/"),
    *("/API", "/%c0%af", "/%25%32%66", "/a%zz", '/<>"{}|^`'),
]


@pytest.mark.parametrize("path", PATHS)
def test_p3_raw_path_is_as_sent(server, path):
    seen = accepted(server, f"GET {path}?q=%2F&r=?x HTTP/1.1\r\nHost: t\r\n\r\n".encode())
    assert seen["raw_path"] == path
    assert seen["query"] == "q=%2F&r=?x"


def test_p3_path_is_decoded_once(server):
    assert accepted(server, GET.replace(b"/echo", b"/a%2520%C3%A9") + b"Host: t\r\n\r\n")["path"] == "/a%20é"


DROPPED = [
    *("Daphne-Root-Path", "daphne-root-path", "X-Original-URL", "X-Rewrite-Url", "Script-Name", "SCRIPT_NAME"),
    *("X_Forwarded_For", "Content_Length", "authorization_", "_", "X-API_Key"),
]


@pytest.mark.parametrize("name", DROPPED)
def test_p5_headers_that_move_a_request_are_removed(server, name):
    seen = accepted(server, GET + b"Host: t\r\nAccept: a\r\n" + name.encode() + b": /admin\r\nX-Last: b\r\n\r\n")
    assert seen["headers"] == [["host", "t"], ["accept", "a"], ["x-last", "b"]]


def test_p5_proxy_headers_are_passed_but_not_believed(server):
    seen = accepted(server, GET + b"Host: t\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\r\n")
    assert ["x-forwarded-for", "9.9.9.9"] in seen["headers"]


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "PURGE", "M-SEARCH", "QUERY", "SOURCE", "LINK", "CONNECT"])
def test_p6_methods_without_a_use_are_not_allowed(server, method):
    answer = refused(server, f"{method} /echo HTTP/1.1\r\nHost: t\r\n\r\n".encode(), 405)
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("method", ["get", "Post", "FOO", "GETT", "X" * 30, "BREW"])
def test_p6_unknown_and_lower_case_methods_are_not_allowed(server, method):
    refused(server, f"{method} /echo HTTP/1.1\r\nHost: t\r\n\r\n".encode(), 405)


def test_p6_method_override_is_ignored(server):
    seen = accepted(server, POST + b"X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n")
    assert seen["method"] == "POST"


def test_n4_expectations(server):
    refused(server, POST + b"Expect: 200-ok\r\nContent-Length: 4\r\n\r\nabcd", 417)
    refused(server, POST + b"Expect: 100-continue\r\nExpect: x\r\nContent-Length: 4\r\n\r\nabcd", 417)
