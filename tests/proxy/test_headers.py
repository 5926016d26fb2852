"""Rows P8–P10: which headers pass, in both directions, whatever is sent."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import headers

ALLOWED = re.compile(rb"(accept|user-agent|traceparent|tracestate|(?:anthropic|openai)-[a-z0-9-]+): [\x20-\x7e]*")

NAMES = st.sampled_from(
    [
        b"accept",
        b"user-agent",
        b"traceparent",
        b"anthropic-version",
        b"openai-beta",
        b"authorization",
        b"x-api-key",
        b"cookie",
        b"connection",
        b"host",
        b"openai-\r\nx: y",
        b"anthropic-a_b",
        b"openai-",
    ]
) | st.binary(max_size=20)
VALUES = st.binary(max_size=40) | st.sampled_from(
    [b"close", b"keep-alive", b"Accept, user-agent", b"a\r\nb: c", b"x" * 600]
)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_p8_only_allowed_headers_ever_reach_a_backend(sent):
    passed = headers.towards_backend(sent)
    lines = passed.split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert ALLOWED.fullmatch(line), line


@pytest.mark.parametrize(
    "name",
    [
        *(b"authorization", b"x-api-key", b"cookie", b"origin", b"referer", b"x-forwarded-for", b"forwarded"),
        *(b"content-encoding", b"content-length", b"content-type", b"transfer-encoding", b"expect", b"te", b"trailer"),
        *(b"host", b"connection", b"upgrade", b"accept-encoding", b"accept_", b"user_agent", b"openai_beta"),
        *(b"anthropic-be_ta", b"openai-", b"x-ollama-gateway-hops", b"x-request-id", b"proxy-authorization", b"range"),
        *(b"x-stainless-os", b"x-openwebui-user-email", b"if-none-match", b"via", b"x-real-ip", b"accept-language"),
    ],
)
def test_p8_what_is_not_listed_stays_here(name):
    assert headers.towards_backend([(name, b"x")]) == b""


def test_p8_what_is_listed_passes_as_it_is():
    sent = [
        (b"accept", b"*/*"),
        (b"user-agent", b"t/1 (x; y)"),
        (b"anthropic-version", b"2023-06-01"),
        (b"openai-beta", b"a=b"),
    ]
    assert headers.towards_backend(sent) == (
        b"accept: */*\r\nuser-agent: t/1 (x; y)\r\nanthropic-version: 2023-06-01\r\nopenai-beta: a=b\r\n"
    )


@pytest.mark.parametrize("connection", [b"user-agent", b"close, User-Agent", b"keep-alive,user-agent ,x"])
@pytest.mark.parametrize("first", [True, False])
def test_p8_what_connection_names_goes_no_further(connection, first):
    sent = [(b"user-agent", b"me"), (b"accept", b"*/*")]
    sent.insert(0 if first else 2, (b"connection", connection))
    assert headers.towards_backend(sent) == b"accept: */*\r\n"


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\x00b", b"\xfc", b"x" * 513, b"\x7f", b"a\tb"])
def test_p10_a_value_that_could_end_a_line_is_dropped(value):
    assert headers.towards_backend([(b"user-agent", value)]) == b""
    assert headers.towards_client([(b"retry-after", value)]) == []
    assert headers.content_type_for_client(b"application/json; x=" + value) is None


@pytest.mark.parametrize(
    "name",
    [
        *(b"set-cookie", b"server", b"location", b"link", b"refresh", b"clear-site-data", b"x-powered-by", b"date"),
        *(
            b"access-control-allow-origin",
            b"access-control-allow-credentials",
            b"connection",
            b"keep-alive",
            b"upgrade",
        ),
        *(b"transfer-encoding", b"content-length", b"content-encoding", b"www-authenticate", b"x-request-id", b"via"),
        *(b"x-gateway-backend", b"x-ratelimit-remaining", b"strict-transport-security", b"content-security-policy"),
    ],
)
def test_p9_headers_of_a_backend_stay_here(name):
    assert headers.towards_client([(name, b"x")]) == []


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        (b"application/json", True),
        (b"application/json; charset=utf-8", True),
        (b"Application/X-NDJSON", True),
        (b"text/event-stream", True),
        (b"text/plain; charset=utf-8", True),
        (b"text/html", False),
        (b"text/html; application/json", False),
        (b"application/json, text/html", False),
        (b"image/svg+xml", False),
        (b"application/xhtml+xml", False),
        (b"multipart/x-mixed-replace", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_p9_only_known_types_of_content_pass(kind, passes):
    assert headers.content_type_for_client(kind) == (kind if passes else None)


def test_p9_our_answers_are_neither_stored_nor_sniffed_nor_run():
    ours = dict(headers.SAFETY)
    assert ours[b"cache-control"] == b"no-store"
    assert ours[b"x-content-type-options"] == b"nosniff"
    assert b"default-src 'none'" in ours[b"content-security-policy"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"req-1.2:3/4+5=6@7_8", "req-1.2:3/4+5=6@7_8"),
        (b"", ""),
        (b"a b", ""),
        (b"a\r\nb", ""),
        (b"a\x00", ""),
        (b"<script>", ""),
        (b"\xc3\xbc", ""),
        (b"x" * 129, ""),
        (b"x" * 128, "x" * 128),
    ],
)
def test_p10_a_request_id_is_kept_only_if_it_is_one(sent, kept):
    assert headers.client_request_id(sent) == kept


def test_j8_stored_text_holds_no_nul_and_has_an_end():
    assert headers.stored_text("a\x00b", 100) == "a\\x00b"
    assert headers.stored_text("\x00" * 100, 256) == "\\x00" * 64
    assert len(headers.stored_text("\x00" * 1000, 256)) == 256
