"""Token counts, read from the bytes as they pass (ollama-api §2.4). Pure: bytes in, counts out.

A stream costs a count and a search per chunk; only its last line or event is parsed. Where a backend reports nothing
the counts are estimates and say so: prompt = bytes / 4, which is what Ollama itself guesses; output = one token per
line or event of the stream that carries text, or bytes / 4 of an answer that is no stream.
"""

from proxy.metering.answers import AnswerMeter, EmbeddingMeter
from proxy.metering.base import MAX_LINE, MAX_TOKENS, Counts, Meter, NothingToMeter, ReadUsage, StreamMeter
from proxy.metering.events import EventForm, EventMeter
from proxy.metering.lines import LineMeter

__all__ = [
    "MAX_LINE",
    "MAX_TOKENS",
    "AnswerMeter",
    "Counts",
    "EmbeddingMeter",
    "EventForm",
    "EventMeter",
    "LineMeter",
    "Meter",
    "NothingToMeter",
    "ReadUsage",
    "StreamMeter",
]
