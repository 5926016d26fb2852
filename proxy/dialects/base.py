"""What each dialect must be able to say."""

from typing import Any, NamedTuple, Protocol

import orjson


class Dialect(Protocol):
    name: str

    def error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        """The body of an error answer, application/json."""

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        """What ends a stream that cannot go on, as the next bytes of that stream."""


# As Go writes JSON: clients split streams on more than \n, and pages may embed what they show.
_GO_ESCAPES = ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026"))


def go_json(value: object) -> bytes:
    """JSON in the bytes that Ollama itself would write."""
    text = orjson.dumps(value)
    for char, escape in _GO_ESCAPES:
        text = text.replace(char, escape)
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


class Usage(NamedTuple):
    """What a backend reports at the end, unchecked: any value may be of any type or missing. Durations in ns."""

    done: bool
    prompt_tokens: Any = None
    completion_tokens: Any = None
    load_ns: Any = None
    prefill_ns: Any = None
    decode_ns: Any = None
    error: Any = None
