"""What each dialect must be able to say, and what is known of each of its endpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

if TYPE_CHECKING:
    from proxy.body import Schema
    from proxy.forms import Form
    from proxy.metering import Meter

Request = dict[str, Any]
"""A body: decoded, checked and in Ollama's spelling."""


NOTHING: Mapping[str, Any] = {}


class Dialect(Protocol):
    name: str
    id_headers: tuple[bytes, ...]  # what its clients look for the request id in

    def error(self, status: int, code: str, message: str, request_id: str, said: Mapping[str, Any] = NOTHING) -> bytes:
        """The body of an error answer, application/json. `said`: the error object of a backend, where there is one."""

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


@dataclass(frozen=True, slots=True)
class Pin:
    """What the gateway decides for a call of a model, whatever the call asks for."""

    output_cap: int  # the most it may generate
    output_default: int  # what a call gets that names no cap
    num_ctx: int | None = None
    load_options: tuple[tuple[str, Any], ...] = ()
    keep_alive: str | float | None = None
    may_unload: bool = False
    may_use_cloud: bool = False

    def capped(self, asked: int | None) -> int:
        """The tokens that a call may generate. To Ollama 0 and below are "unbounded": they name no cap."""
        return min(asked if asked is not None and asked > 0 else self.output_default, self.output_cap)


class Governed(NamedTuple):
    """What became of a request under policy."""

    output_cap: int = 0  # tokens; 0 = it generates nothing
    changed: Sequence[str] = ()  # names of what was changed, for the client to read
    context: int = 0  # the num_ctx it asked for; 0 = none
    hides_usage: bool = False  # usage was asked for on our own account


def no_stream(request: Request) -> bool:
    return False


def nobody(request: Request) -> str:
    return ""


def as_long(request: Request, size: int) -> int:
    return size


def in_json(request: Request) -> tuple[bytes, bytes]:
    return b"application/json", orjson.dumps(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How the calls of one endpoint are read, governed and metered."""

    schema: "Schema"
    govern: Callable[[Request, Pin], Governed]  # writes policy into the request; raises BadRequest
    # (content type of the answer, bytes of the request, whether usage is hidden): by what the answer is, whatever was
    # asked for.
    meter: Callable[[bytes, int, bool], "Meter"]
    wants_stream: Callable[[Request], bool] = no_stream
    unloads: Callable[[Request], bool] = no_stream  # asks for nothing but that the model be unloaded
    names: tuple[str, ...] = ("model",)  # the fields that may name the model
    read_form: "Callable[[Form], Request] | None" = None  # where the body is a multipart form; raises BadRequest
    takes_zstd: bool = False  # whether Ollama takes compressed requests there
    end_user: Callable[[Request], str] = nobody  # whom the app says it calls for; unverified
    weigh: Callable[[Request, int], int] = as_long  # (…, size of the body) → bytes of which four are a token
    written: Callable[[Request], tuple[bytes, bytes]] = in_json  # (content type, body) of the request upstream
