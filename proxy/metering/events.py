"""Server-sent events (OpenAI and Anthropic streams)."""

from dataclasses import dataclass

import orjson

from proxy.dialects.base import go_json
from proxy.errors import BrokenAnswer
from proxy.metering.base import MAX_LINE, ReadUsage, StreamMeter

_USAGE = b'"usage":{'
_ERROR = b'data: {"error":'


@dataclass(frozen=True, slots=True)
class EventForm:
    """How the events of one endpoint tell what a call used.

    What is searched for cannot stand within a text: in JSON texts quotes and line breaks are escaped.
    """

    token: bytes  # stands once in each event that carries about one token
    reporting: tuple[bytes, ...]  # how the events begin that report the usage of the whole call; the last one counts
    last: tuple[bytes, ...]  # how the event begins that ends the stream
    usage: ReadUsage  # of the data of a reporting event
    blank: bytes = b""  # stands in an event that has a token's form and carries none


class EventMeter(StreamMeter):
    """A stream of events, each ended by a blank line. One without it was cut, and is not passed on."""

    __slots__ = ("_event", "_failure", "_form", "_hides_usage", "_last", "_report")

    def __init__(self, form: EventForm, prompt_bytes: int, *, hides_usage: bool = False) -> None:
        """`hides_usage`: the client did not ask for the usage that the gateway asked for."""
        super().__init__(form.usage, prompt_bytes)
        self._form = form
        self._hides_usage = hides_usage
        self._event = bytearray()  # the event that has no end yet
        self._last = b""  # the last whole event that is no comment
        self._report = b""
        self._failure = b""  # an event that says what went wrong

    def feed(self, chunk: bytes) -> bytes:
        if b"\r" in chunk:
            # JSON escapes its own: these end lines, in another way than ours.
            chunk = chunk.replace(b"\r", b"")
        if self._event or not chunk.endswith(b"\n\n"):
            chunk = self._whole_events(chunk)
        if not chunk:
            return chunk
        form = self._form
        self.counted += chunk.count(form.token)
        if form.blank and form.blank in chunk:
            self.counted -= chunk.count(form.blank)
        # Most chunks are one whole event.
        if chunk.find(b"\n\n") == len(chunk) - 2 and chunk[0] not in b":\n":
            self._last = chunk
        else:
            self._note_last(chunk)
        if _ERROR in chunk:
            self._failure = chunk[chunk.rfind(_ERROR) :].partition(b"\n\n")[0]
        if _USAGE in chunk:
            return self._reported(chunk)
        return chunk

    def _whole_events(self, chunk: bytes) -> bytes:
        # The blank line itself may have come in two pieces.
        self._event += chunk
        end = self._event.rfind(b"\n\n", max(len(self._event) - len(chunk) - 1, 0)) + 2
        if end < 2:
            if len(self._event) > MAX_LINE:
                raise BrokenAnswer(f"an event of more than {MAX_LINE} bytes")
            return b""
        events = bytes(self._event[:end])
        del self._event[:end]
        return events

    def _note_last(self, chunk: bytes) -> None:
        for event in reversed(chunk.split(b"\n\n")):
            event = event.lstrip(b"\n")
            if event and not event.startswith(b":"):
                self._last = event
                return

    def _reported(self, chunk: bytes) -> bytes:
        """Notes the latest report of usage; takes it out where the client did not ask for it."""
        events = [event + b"\n\n" for event in chunk[:-2].split(b"\n\n")]
        for number, event in enumerate(events):
            if _USAGE not in event:
                continue
            if event.lstrip(b"\n").startswith(self._form.reporting):
                self._report = event
            if self._hides_usage:
                events[number] = without_usage(event)
        return b"".join(events) if self._hides_usage else chunk

    @property
    def fault(self) -> str:
        # Where its runner fails, Ollama loses the text of the error, and with it the model's name (ollama-api §4.3).
        return "the backend failed without a word" if b'"model":"",' in self._last else ""

    def finish(self) -> None:
        said = data_of(self._failure or self._last)
        error = said.get("error")
        if error is None and self._last.startswith((b"event: response.failed\n", b"event: error\n")):
            response = said.get("response")
            error = (response.get("error") if isinstance(response, dict) else said.get("message")) or "failed"
        if error:
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)[:4096]
        else:
            self.complete = self._last.startswith(self._form.last)
        if self._report:
            self._usage = self.read_usage(data_of(self._report))


def data_of(event: bytes) -> dict[str, object]:
    """The object in an event of one data line; {} where there is none."""
    # The name of an event holds no blank, and JSON no line break: the first is the right one.
    data = event.partition(b"data: ")[2]
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def without_usage(event: bytes) -> bytes:
    """An OpenAI event as it would have been had nobody asked for usage; the one that only reports it is dropped."""
    said = data_of(event)
    if not said:
        return event
    if said.get("choices") == []:
        return b""
    said.pop("usage", None)
    return b"data: " + go_json(said) + b"\n\n"
