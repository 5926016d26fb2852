"""Rows B3, U3: answers of every dialect and mode, cut at every byte, through the relay that clients get them from."""

import json
from types import SimpleNamespace

import pytest
import pytest_asyncio

from proxy.call import Call, Ids
from proxy.client import Client
from proxy.errors import BrokenAnswer
from proxy.metering import StreamMeter
from proxy.relay import Relay
from proxy.routes import ROUTES
from tests.proxy.transcripts import STREAMS, TOKENS, record_all

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT_BYTES = 101  # 26 tokens by the estimate
IDS = Ids()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streams():
    return await record_all(stream=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers():
    return await record_all(stream=False)


class SomeAnswer:
    """As one from the wire; after its pieces the connection ends in order, or breaks."""

    status = 200
    ready = True

    def __init__(self, content_type, pieces, *, breaks=False):
        self.headers = [(b"content-type", content_type)]
        self.pieces = list(pieces)
        self.breaks = breaks

    def header(self, name):
        return dict(self.headers).get(name, b"")

    @property
    def at_end(self):
        return not self.pieces and not self.breaks

    async def read(self):
        if self.pieces:
            return self.pieces.pop(0)
        if self.breaks:
            raise BrokenAnswer("closed the connection (EOF)")
        return b""


class Relayed:
    """What became of one answer: the bytes the client got, and the call."""

    def __init__(self, transcript, *, asked="", hides_usage=None):
        self.transcript = transcript
        self.events = []
        self.call = call = Call(IDS.new(1.8e9), "POST", transcript.path.encode(), None, 1.8e9)
        call.route = ROUTES[call.path]["POST"]
        call.asked = asked or transcript.model
        call.model = SimpleNamespace(served=SimpleNamespace(upstream=transcript.model))
        call.output_cap = 99
        call.stream = transcript.asked.get("stream", True)
        self.hides_usage = "stream_options" not in transcript.asked if hides_usage is None else hides_usage
        self.settled_at = None

    async def send(self, event):
        self.events.append(event)

    def settle(self):
        assert self.settled_at is None, "settled twice"
        self.settled_at = len(self.events)

    async def run(self, pieces, *, breaks=False):
        answer = SomeAnswer(self.transcript.content_type, pieces, breaks=breaks)
        meter = self.call.route.endpoint.meter(self.transcript.content_type, PROMPT_BYTES, self.hides_usage)
        client = Client({"headers": []}, None, self.send)
        await Relay(self.call, client, answer, [], 0, self.settle).run(meter)
        return self

    @property
    def body(self):
        return b"".join(event.get("body", b"") for event in self.events)

    @property
    def tokens(self):
        counts = self.call.meter.counts()
        return counts.prompt_tokens, counts.completion_tokens, counts.estimated

    def ends_with_an_error_of_the_dialect(self):
        """Its last line or event; all before it is a prefix of what the backend sent."""
        assert self.events[-1]["more_body"] is False
        path = self.transcript.path
        if path.startswith("/api/"):
            lines = self.body.split(b"\n")
            assert lines[-1] == b""
            return isinstance(json.loads(lines[-2])["error"], str)
        events = self.body.split(b"\n\n")
        assert events[-1] == b""
        *names, data = events[-2].split(b"\n")
        said = json.loads(data.removeprefix(b"data: "))
        if path == "/v1/messages":
            return names == [b"event: error"] and said["type"] == "error" and bool(said["error"]["message"])
        if path == "/v1/responses":
            return names == [b"event: error"] and said["type"] == "error" and bool(said["error"]["message"])
        return names == [] and said["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", STREAMS)
async def test_u3_a_whole_stream_is_metered_as_the_fake_counts(streams, name):
    transcript = streams[name]
    relayed = await Relayed(transcript, hides_usage=False).run([transcript.body])
    assert relayed.call.outcome == "ok"
    assert relayed.tokens == (transcript.prompt_tokens, transcript.tokens, False)
    assert relayed.body == transcript.body, "nothing is changed on the way"
    assert transcript.tokens >= TOKENS


@pytest.fixture(autouse=True)
def few_words(caplog):
    """Each cut is worth a warning, and there are 100,000."""
    caplog.set_level("CRITICAL", "proxy.relay")


# With the connection in order the meter alone must find out; a broken one is told by the wire, wherever it breaks.
@pytest.mark.parametrize(("breaks", "step"), [(False, 1), (True, 11)], ids=["ended", "broken"])
@pytest.mark.parametrize("name", STREAMS)
async def test_b3_u3_cut_at_every_byte_a_stream_ends_in_an_error_and_costs_what_came(streams, name, breaks, step):
    transcript = streams[name]
    for size in range(0, transcript.end, step):
        relayed = await Relayed(transcript).run([transcript.body[:size]] if size else [], breaks=breaks)
        where = transcript.body[:size][-80:]
        assert relayed.ends_with_an_error_of_the_dialect(), where
        assert relayed.settled_at == len(relayed.events) - 1, "the record is closed before the last bytes leave"
        call = relayed.call
        assert (call.outcome, call.status) == ("failed", 200), where
        assert call.error == ("broken_stream" if breaks else "incomplete")
        prompt, completion, estimated = relayed.tokens
        assert (prompt, estimated) == (26, True)
        said = transcript.pieces_in(size)
        # One token for each piece that came; the last line of Ollama's own, or the reason that ends a completion, is
        # taken for one, too.
        assert said <= completion <= said + 1, where


@pytest.mark.parametrize("name", STREAMS)
async def test_b8_a_stream_in_any_pieces_is_the_same_stream(streams, name):
    transcript = streams[name]
    whole = await Relayed(transcript).run([transcript.body])
    body = transcript.body
    cuts = [[body[:size], body[size:]] for size in range(1, len(body))]
    cuts.append([body[at : at + 1] for at in range(len(body))])
    for pieces in cuts:
        relayed = await Relayed(transcript).run(pieces)
        assert relayed.body == whole.body
        assert relayed.tokens == whole.tokens
        assert relayed.call.outcome == "ok"


@pytest.mark.parametrize("name", [name for name, (path, *_) in STREAMS.items() if "completions" in path])
async def test_u3_what_was_asked_on_our_account_stays_with_us(streams, name):
    transcript = streams[name]
    for body in (transcript.body, transcript.body.replace(b"\n", b"\r\n")):
        relayed = await Relayed(transcript, hides_usage=True).run([body])
        assert b'"usage"' not in relayed.body
        assert b'"choices":[]' not in relayed.body
        assert relayed.body.endswith(b"data: [DONE]\n\n")
        assert relayed.tokens == (transcript.prompt_tokens, transcript.tokens, False)


@pytest.mark.parametrize("name", STREAMS)
async def test_the_name_asked_by_is_in_every_line_that_had_the_served_one(streams, name):
    transcript = streams[name]
    relayed = await Relayed(transcript, asked='Odd"Näme', hides_usage=False).run([transcript.body])
    served = b'"model":"%b"' % transcript.model.encode()
    assert served not in relayed.body
    assert relayed.body.count(b'"model":"Odd\\"N\xc3\xa4me"') == transcript.body.count(served)


# Answers in one piece


@pytest.mark.parametrize("name", STREAMS)
async def test_u3_an_answer_in_one_piece_is_metered_as_the_fake_counts(answers, name):
    transcript = answers[name]
    relayed = await Relayed(transcript).run([transcript.body])
    assert not isinstance(relayed.call.meter, StreamMeter)
    assert relayed.call.outcome == "ok"
    assert relayed.tokens == (transcript.prompt_tokens, transcript.tokens, False)
    assert relayed.body == transcript.body


@pytest.mark.parametrize("name", STREAMS)
async def test_b3_u3_cut_at_every_byte_an_answer_in_one_piece_is_none_and_costs_what_came(answers, name):
    transcript = answers[name]
    for size in range(len(transcript.body.rstrip())):
        relayed = Relayed(transcript)
        with pytest.raises(BrokenAnswer):
            await relayed.run([transcript.body[:size]] if size else [])
        assert relayed.events == [], "the client gets an error of its own"
        assert relayed.tokens == (26, -(-size // 4), True)
