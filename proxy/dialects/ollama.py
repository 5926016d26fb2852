"""Ollama's own dialect: its fields, what policy sets in them, its usage, its errors. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from proxy import body
from proxy.body import Schema
from proxy.dialects import weight
from proxy.dialects.base import NOTHING, Endpoint, Governed, Pin, Request, Usage, go_json
from proxy.dialects.ollama_show import govern_show
from proxy.errors import BadRequest
from proxy.metering import AnswerMeter, EmbeddingMeter, LineMeter, Meter, NothingToMeter

LOAD_OPTIONS = frozenset(("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"))

# A duration as Go writes it, of no length: "0", "0s", "-0h0m0.00s".
_NO_TIME = re.compile(r"[-+]?(?:0|(?:(?:0+(?:\.0*)?|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)\Z")

OPTIONS = Schema(
    {
        **dict.fromkeys(
            ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu"),
            body.integer,
        ),
        **dict.fromkeys(("main_gpu", "num_thread", "draft_num_predict"), body.integer),
        **dict.fromkeys(
            ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"),
            body.number,
        ),
        "stop": body.texts,
        "use_mmap": body.boolean,
    }
)

FUNCTION = Schema({"name": body.text, "description": body.text, "parameters": body.obj})
TOOL = Schema({"type": body.text, "function": body.nested(FUNCTION)})
_CALLED = Schema({"index": body.integer, "name": body.text, "arguments": body.obj})
TOOL_CALL = Schema({"id": body.text, "function": body.nested(_CALLED)})
MESSAGE = Schema(
    {
        "role": body.text,
        "content": body.text,
        "thinking": body.text,
        "images": body.texts,
        "tool_calls": body.list_of(TOOL_CALL),
        "tool_name": body.text,
        "tool_call_id": body.text,
    }
)


def keep_alive(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or type(value) in (int, float):
        return value
    raise BadRequest(f'"{name}" must be a number of seconds or a duration such as "5m"')


def think(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or value in ("low", "medium", "high", "max"):
        return value
    raise BadRequest(f'"{name}" must be true, false, "low", "medium", "high" or "max"')


def output_format(name: str, value: Any) -> Any:
    if value is None or value in ("", "json") or isinstance(value, dict):
        return value
    raise BadRequest(f'"{name}" must be "json" or a JSON schema')


_COMMON = {
    "model": body.text,
    "keep_alive": keep_alive,
    "options": body.nested(OPTIONS),
    "truncate": body.boolean,
}
_GENERATION = {
    **_COMMON,
    "stream": body.boolean,
    "format": output_format,
    "think": think,
    "shift": body.boolean,
    "logprobs": body.boolean,
    "top_logprobs": body.top_logprobs,
    "_debug_render_only": body.boolean,
}
CHAT = Schema({**_GENERATION, "messages": body.list_of(MESSAGE), "tools": body.list_of(TOOL)})
GENERATE = Schema(
    {
        **_GENERATION,
        **dict.fromkeys(("prompt", "suffix", "system", "template"), body.text),
        "raw": body.boolean,
        "images": body.texts,
        "context": body.integers,
    }
)
EMBED = Schema({**_COMMON, "input": body.text_or_texts, "dimensions": body.integer})
EMBEDDINGS = Schema({**_COMMON, "prompt": body.text})
SHOW = Schema(
    {
        "model": body.text,
        "name": body.text,
        "verbose": body.boolean,
        "system": body.text,
        "options": body.nested(OPTIONS),
    }
)


def asked_context(request: dict[str, Any]) -> int:
    """The num_ctx that a call asks for; 0 = none."""
    options = request.get("options")
    return max(options.get("num_ctx") or 0, 0) if options else 0


def govern_generation(request: Request, pin: Pin) -> Governed:
    return _govern(request, pin, generates=True)


def govern_embedding(request: Request, pin: Pin) -> Governed:
    return _govern(request, pin, generates=False)


def _govern(request: Request, pin: Pin, *, generates: bool) -> Governed:
    changed: list[str] = []
    context = asked_context(request)
    for name in ("_debug_render_only", "shift"):
        if request.pop(name, None) is not None:
            changed.append(name)
    asked = request.pop("keep_alive", None)
    if asked is not None and pin.may_unload:
        request["keep_alive"] = asked
    elif pin.keep_alive is not None:
        request["keep_alive"] = pin.keep_alive
    if asked is not None and request.get("keep_alive") != asked:
        changed.append("keep_alive")
    options = _pinned_options(request.get("options") or {}, pin, changed)
    cap = _capped_output(options, pin, changed) if generates else 0
    if options:
        request["options"] = options
    else:
        request.pop("options", None)
    return Governed(cap, changed, context)


def _pinned_options(asked: dict[str, Any], pin: Pin, changed: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    unknown = False
    for name, value in asked.items():
        if value is None:
            continue
        if name not in OPTIONS.names:
            unknown = True
        elif name in LOAD_OPTIONS:
            changed.append(f"options.{name}")
        else:
            options[name] = value
    if unknown:
        # Not by name: what a client makes up is no text for a header of ours.
        changed.append("unknown options")
    options.update(pin.load_options)
    if pin.num_ctx:
        options["num_ctx"] = pin.num_ctx
        if asked.get("num_ctx") == pin.num_ctx:
            changed.remove("options.num_ctx")
    return options


def _capped_output(options: dict[str, Any], pin: Pin, changed: list[str]) -> int:
    asked = options.get("num_predict")
    cap = pin.capped(asked)
    if cap != asked:
        options["num_predict"] = cap
        changed.append(f"options.num_predict={cap}")
    return cap


def wants_stream(request: dict[str, Any]) -> bool:
    return request.get("stream") is not False


def is_empty_generation(request: dict[str, Any]) -> bool:
    """A request that only loads or unloads its model."""
    return not request.get("prompt") and not request.get("messages") and not request.get("images")


def unloads(request: dict[str, Any]) -> bool:
    """keep_alive 0 in any of the spellings that Ollama takes for it, and nothing to generate."""
    value = request.get("keep_alive")
    if value is None or not is_empty_generation(request):
        return False
    return bool(_NO_TIME.match(value) if isinstance(value, str) else value == 0)


def usage(answer: dict[str, Any]) -> Usage:
    """The counts of a final object. Absent counts are 0, not errors: Go omits what is zero."""
    get = answer.get
    return Usage(
        get("done", True) is True,
        get("prompt_eval_count"),
        get("eval_count"),
        get("load_duration"),
        get("prompt_eval_duration"),
        get("eval_duration"),
        get("error"),
    )


def _generation_meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    # A load never streams, whatever was asked for.
    return (LineMeter if b"ndjson" in content_type else AnswerMeter)(usage, prompt_bytes)


def _embedding_meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    return EmbeddingMeter(usage, prompt_bytes)


def _silent_embedding_meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    return EmbeddingMeter(usage, prompt_bytes, reports=False)


def nothing_to_meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    return NothingToMeter(usage, 0)


def _generation(schema: Schema) -> Endpoint:
    return Endpoint(
        schema=schema,
        govern=govern_generation,
        weigh=weight.weigh,
        meter=_generation_meter,
        wants_stream=wants_stream,
        unloads=unloads,
    )


ENDPOINTS: Mapping[str, Endpoint] = {
    "/api/show": Endpoint(schema=SHOW, govern=govern_show, meter=nothing_to_meter, names=("model", "name")),
    "/api/chat": _generation(CHAT),
    "/api/generate": _generation(GENERATE),
    "/api/embed": Endpoint(schema=EMBED, govern=govern_embedding, meter=_embedding_meter),
    "/api/embeddings": Endpoint(schema=EMBEDDINGS, govern=govern_embedding, meter=_silent_embedding_meter),
}


class Ollama:
    name = "ollama"
    id_headers: tuple[bytes, ...] = (b"x-request-id",)

    def error(self, status: int, code: str, message: str, request_id: str, said: Mapping[str, Any] = NOTHING) -> bytes:
        # Always a string: ollama-js and the CLI insist on it.
        return go_json({"error": message})

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        return go_json({"error": message}) + b"\n"
