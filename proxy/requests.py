"""From the bytes of a request to what will be sent: body, model, policy."""

import asyncio
from typing import Any

from proxy import body
from proxy import headers as header_rules
from proxy.admission import resolve_model
from proxy.call import Call
from proxy.client import Client
from proxy.configuration import Configuration
from proxy.dialects import ollama
from proxy.dialects.base import go_json
from proxy.errors import BadRequest, UnsupportedEncoding
from proxy.routes import Kind
from proxy.snapshot import Key, Policy, Snapshot

Request = dict[str, Any]


async def read_request(call: Call, client: Client, snapshot: Snapshot, configuration: Configuration) -> Request:
    """The checked object that a backend will get, and on the call all that it says. Raises Refusal."""
    assert call.route is not None
    assert call.route.schema is not None
    assert call.key is not None
    encoding = client.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedEncoding("unsupported_encoding", "Send the body without Content-Encoding.")
    raw = await client.body(configuration.max_body_bytes)
    call.bytes_in = len(raw)
    if len(raw) <= body.COUNTED_ABOVE:
        request = body.read(raw, call.route.schema)
    else:
        request = await _object_in(raw, call.route.schema)
    asked = _one_name(request) if call.route.kind is Kind.SHOW else request.get("model")
    call.model = resolve_model(snapshot, call.key, call.route, asked)
    call.asked = str(asked).strip()
    request["model"] = call.model.served.upstream
    call.stream = call.route.streams and ollama.wants_stream(request)
    _note_client(call, client)
    if call.route.kind is not Kind.SHOW:
        _apply_policy(call, request, snapshot, configuration)
    return request


async def _object_in(raw: bytes, schema: body.Schema) -> Request:
    """Other calls go on between the steps of reading a large body (J6)."""
    for _ in body.weighing(raw):
        await asyncio.sleep(0)
    request = body.parsed(raw)
    await asyncio.sleep(0)
    return body.conform("", request, schema)


def _one_name(request: Request) -> Any:
    """/api/show takes `name` for `model`; both at once could name two models (M1)."""
    name = request.pop("name", None)
    if name and request.get("model"):
        raise BadRequest('give "model" or "name", not both')
    return request.get("model") or name


def _apply_policy(call: Call, request: Request, snapshot: Snapshot, configuration: Configuration) -> None:
    assert call.route is not None
    assert call.key is not None
    assert call.model is not None
    pin = _pin(call.key, call.model.policy, snapshot, configuration)
    call.context = ollama.asked_context(request)
    generates = call.route.kind is Kind.GENERATION
    if generates and not call.key.may_manage and ollama.unloads(request):
        call.answered_as_unloaded, call.adjusted = True, ["keep_alive"]
        return
    call.output_cap, call.adjusted = ollama.pin(request, pin, generates=generates)


def _pin(key: Key, policy: Policy, snapshot: Snapshot, configuration: Configuration) -> ollama.Pin:
    identity = (key.max_output_tokens, key.may_manage, policy.pattern)
    pin = snapshot.pins.get(identity)
    if pin is not None:
        return pin
    caps = [cap for cap in (key.max_output_tokens, policy.max_output_tokens) if cap]
    pin = snapshot.pins[identity] = ollama.Pin(
        output_cap=min(caps) if caps else configuration.max_output_tokens,
        output_default=configuration.default_output_tokens,
        num_ctx=policy.num_ctx,
        load_options=policy.load_options,
        keep_alive=policy.keep_alive,
        may_unload=key.may_manage,
    )
    return pin


def _note_client(call: Call, client: Client) -> None:
    for name, value in client.headers:
        if name == b"user-agent":
            call.user_agent = header_rules.stored_text(value.decode("latin-1"), 256)
        elif name == b"x-request-id":
            call.client_request_id = header_rules.client_request_id(value)
        elif name == b"x-openwebui-user-id":
            call.end_user = header_rules.stored_text(value.decode("latin-1"), 128)


def unloaded(call: Call) -> bytes:
    """What Ollama answers to an unload. An ordinary key does not unload a model for everybody (design §11)."""
    assert call.route is not None
    said: Request = {"model": call.asked, "created_at": call.started_text}
    if call.route.path == "/api/chat":
        said["message"] = {"role": "assistant", "content": ""}
    else:
        said["response"] = ""
    return go_json({**said, "done": True, "done_reason": "unload"})
