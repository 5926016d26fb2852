"""Server-sent events (OpenAI and Anthropic streams)."""

from dataclasses import dataclass

import orjson

from proxy.dialects.base import go_json
from proxy.errors import BrokenAnswer
from proxy.metering.base import MAX_LINE, ReadUsage, StreamMeter

_USAGE = b'"usage":{'


@dataclass(frozen=True, slots=True)
class EventForm:
    """How the events of one endpoint tell what a call used. Quotes within JSON texts are escaped: these are keys."""

    token: bytes  # stands once in each event that carries about one token
    reporting: bytes  # how an event begins that reports the usage of the whole call
    last: bytes  # how the event begins that ends the stream
    usage: ReadUsage  # of the data of the reporting event


class EventMeter(StreamMeter):
    """A stream of events, each ended by a blank line. One without it was cut, and is not passed on."""

    __slots__ = ("_event", "_form", "_hides_usage", "_last", "_report")

    def __init__(self, form: EventForm, prompt_bytes: int, *, hides_usage: bool = False) -> None:
        """`hides_usage`: the client did not ask for the usage that the gateway asked for."""
        super().__init__(form.usage, prompt_bytes)
        self._form = form
        self._hides_usage = hides_usage
        self._event = bytearray()  # the event that has no end yet
        self._last = b""
        self._report = b""

    def feed(self, chunk: bytes) -> bytes:
        if self._event or not chunk.endswith(b"\n\n"):
            chunk = self._whole_events(chunk)
        if not chunk:
            return chunk
        self.counted += chunk.count(self._form.token)
        end = len(chunk) - 2
        self._last = chunk[chunk.rfind(b"\n\n", 0, end) + 2 :] if b"\n\n" in chunk[:end] else chunk
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

    def _reported(self, chunk: bytes) -> bytes:
        """Notes the latest report of usage; takes it out where the client did not ask for it."""
        events = [event + b"\n\n" for event in chunk[:-2].split(b"\n\n")]
        for number, event in enumerate(events):
            if _USAGE not in event:
                continue
            if event.startswith(self._form.reporting):
                self._report = event
            if self._hides_usage:
                events[number] = _without_usage(event)
        return b"".join(events) if self._hides_usage else chunk

    def finish(self) -> None:
        said = data_of(self._last)
        error = said.get("error")
        if error is None and self._last.startswith(b"event: response.failed\n"):
            response = said.get("response")
            error = (response.get("error") if isinstance(response, dict) else None) or "failed"
        if error:
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)[:4096]
        elif not self._event:
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


def _without_usage(event: bytes) -> bytes:
    """An OpenAI event as it would have been had nobody asked for usage; the one that only reports it is dropped."""
    said = data_of(event)
    if not said or said.get("choices") == []:
        return b""
    del said["usage"]
    return b"data: " + go_json(said) + b"\n\n"
