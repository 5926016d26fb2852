"""Which trace a call belongs to, and what its spans say (docs/logs-and-traces.md)."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from gateway_site import environment
from proxy.errors import Interruption
from proxy.tracing import Tracing, tracing_of
from tests.proxy.test_metrics import ended_call

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def tracing():
    made = Tracing("http://127.0.0.1:9", (), "test", 1.0)
    made.spans = []
    made._processor.shutdown()  # its thread
    made._processor.on_end = made.spans.append
    return made


@pytest.mark.parametrize(
    ("header", "goes_on", "sampled"),
    [
        (f"00-{TRACE}-{PARENT}-01", True, True),
        (f"00-{TRACE}-{PARENT}-00", True, False),
        (f"00-{TRACE}-{PARENT}-03", True, True),
        (f"cc-{TRACE}-{PARENT}-01-what-later-versions-add", True, True),
        (f"00-{TRACE}-{PARENT}-01-more", False, True),
        (f"ff-{TRACE}-{PARENT}-01", False, True),
        (f"00-{'0' * 32}-{PARENT}-01", False, True),
        (f"00-{TRACE}-{'0' * 16}-01", False, True),
        (f"00-{TRACE.upper()}-{PARENT}-01", False, True),
        (f"00-{TRACE}-{PARENT}", False, True),
        ("", False, True),
        (f"00-{TRACE}-{PARENT}-01\n", False, True),
    ],
)
def test_a_traceparent_is_continued_if_it_is_one(tracing, header, goes_on, sampled):
    trace = tracing.begin([(b"host", b"x"), (b"traceparent", header.encode())])
    assert (f"{trace.trace_id:032x}" == TRACE) is goes_on
    assert trace.parent_id == (int(PARENT, 16) if goes_on else 0)
    assert trace.sampled is sampled
    assert trace.header == b"00-%032x-%016x-%02x" % (trace.trace_id, trace.backend_id, sampled)
    assert len({trace.span_id, trace.backend_id, int(PARENT, 16)}) == 3


def test_a_share_of_the_traces_that_begin_here_is_kept():
    tracing = Tracing("http://127.0.0.1:9", (), "test", 0.25)
    tracing._processor.shutdown()
    kept = sum(tracing.begin([]).sampled for _ in range(4000))
    assert 800 < kept < 1200
    assert tracing.begin([(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]).sampled


def spans_of(tracing, call, row):
    call.trace = tracing.begin([])
    tracing.recorded(call, row)
    return {span.name: span for span in tracing.spans}


def test_a_call_that_waited_shows_its_wait(tracing):
    call, row = ended_call(finished_at=1010.0)
    call.backend = type("State", (), {"name": "one"})()
    call.queue_seconds, call.dispatched_at, call.first_byte_at = 2.0, call.started_at + 3.0, call.started_at + 4.0
    spans = spans_of(tracing, call, row)
    times = {name: [span.start_time / 1e9 - 1000, span.end_time / 1e9 - 1000] for name, span in spans.items()}
    assert times == {
        "chat llama3.2:latest": pytest.approx([0, 10]),
        "admit": pytest.approx([0, 1]),
        "wait in line": pytest.approx([1, 3]),
        "backend": pytest.approx([3, 10]),
        "first token": pytest.approx([3, 4]),
        "answer": pytest.approx([4, 10]),
    }


def test_a_call_that_left_the_line_never_came_to_a_backend(tracing):
    call, row = ended_call(attempts=0, finished_at=1005.0)
    call.status, call.outcome, call.error = 503, "refused_in_line", Interruption.LINE.value
    call.queue_seconds = 4.0
    spans = spans_of(tracing, call, row)
    assert set(spans) == {"chat llama3.2:latest", "admit", "wait in line"}
    whole = spans["chat llama3.2:latest"]
    assert whole.status.status_code.name == "ERROR"
    assert whole.attributes["error.type"] == "line_timeout"


def test_what_is_not_sampled_costs_no_span(tracing):
    call, row = ended_call()
    call.trace = tracing.begin([(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
    tracing.recorded(call, row)
    tracing.answered(call, 200, "")
    assert tracing.spans == []


def test_without_an_endpoint_there_is_none(tmp_path):
    from proxy.configuration import Configuration

    assert tracing_of(Configuration(spool_dir=tmp_path, key_pepper=b"x")) is None


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("Authorization=Bearer%20a%3Db", [("authorization", "Bearer a=b")]),
        ("a=1, b=x=y", [("a", "1"), ("b", "x=y")]),
    ],
)
def test_headers_for_the_collector_are_read_as_opentelemetry_writes_them(monkeypatch, text, pairs):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    assert environment.pairs("OTEL_EXPORTER_OTLP_HEADERS") == pairs


@pytest.mark.parametrize("text", ["a secret without a name", "=a secret", "a=1,secret"])
def test_l7_a_header_that_cannot_be_is_not_shown(monkeypatch, text):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    with pytest.raises(ImproperlyConfigured) as refused:
        environment.pairs("OTEL_EXPORTER_OTLP_HEADERS")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("0.5", 0.5), ("1", 1.0)])
def test_a_share_is_from_0_to_1(monkeypatch, text, share):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", text)
    assert environment.share("OTEL_TRACES_SAMPLER_ARG", 1.0) == share
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1.1")
    with pytest.raises(ImproperlyConfigured):
        environment.share("OTEL_TRACES_SAMPLER_ARG", 1.0)
