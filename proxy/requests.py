"""From the bytes of a request to what will be sent: body, model, policy."""

import asyncio
from contextlib import aclosing
from typing import Any

from proxy import body, expansion
from proxy import headers as header_rules
from proxy.admission import NO_DEFAULT_MODEL, resolve_model
from proxy.call import Call
from proxy.client import Client
from proxy.configuration import Configuration
from proxy.dialects.base import Endpoint, Pin, Request, go_json
from proxy.errors import BadRequest, NotFound, UnsupportedEncoding
from proxy.fleet import Fleet
from proxy.forms import Form, FormReader
from proxy.snapshot import Key, Policy, Snapshot

_SAID_OF_ITSELF = (b"user-agent", b"x-request-id", b"x-openwebui-user-id")


async def read_request(
    call: Call, client: Client, snapshot: Snapshot, configuration: Configuration, fleet: Fleet
) -> Request:
    """The checked object that a backend will get, and on the call all that it says. Raises Refusal."""
    assert call.route is not None
    assert call.route.endpoint is not None
    assert call.key is not None
    endpoint = call.route.endpoint
    if endpoint.read_form is None:
        request = await _read_object(call, client, endpoint, configuration.max_body_bytes)
    else:
        request = endpoint.read_form(await _read_form(call, client))
    call.prompt_bytes = endpoint.weigh(request, call.prompt_bytes)
    await name_model(call, request, snapshot, fleet)
    call.stream = endpoint.wants_stream(request)
    note_client(call, client)
    call.end_user = call.end_user or header_rules.stored_text(endpoint.end_user(request), 128)
    govern(call, request, snapshot, configuration)
    return request


async def _read_object(call: Call, client: Client, endpoint: Endpoint, limit: int) -> Request:
    compressed = client.header(b"content-encoding") is not None and _is_compressed(client, endpoint)
    raw = await client.body(limit)
    call.bytes_in = len(raw)
    if compressed:
        raw = await _expanded(raw, min(expansion.MAX_EXPANDED, limit))
    call.prompt_bytes = len(raw)
    if len(raw) <= body.COUNTED_ABOVE:
        return body.read(raw, endpoint.schema)
    return await _object_in(raw, endpoint.schema)


async def _read_form(call: Call, client: Client) -> Form:
    if client.header(b"content-encoding") is not None:
        raise UnsupportedEncoding("unsupported_encoding", "Send the form without Content-Encoding.")
    kinds = [value for name, value in client.headers if name == b"content-type"]
    reader = FormReader(kinds[0] if len(kinds) == 1 else b"", "file")
    async with aclosing(client.chunks()) as pieces:
        async for piece in pieces:
            call.bytes_in += len(piece)
            reader.feed(piece)
    return reader.form


def _is_compressed(client: Client, endpoint: Endpoint) -> bool:
    """Whether the body is to be expanded. Raises UnsupportedEncoding for all that Ollama would not, or twice (J9)."""
    given = [value.strip().lower() for name, value in client.headers if name == b"content-encoding"]
    if given == [b"zstd"] and endpoint.takes_zstd:
        return True
    if given == [b"identity"]:
        return False
    advice = "Send the body without Content-Encoding" + (" or in zstd, once." if endpoint.takes_zstd else ".")
    raise UnsupportedEncoding("unsupported_encoding", advice)


async def _expanded(raw: bytes, limit: int) -> bytes:
    """Other calls go on between the slices of a large body."""
    pieces: list[bytes] = []
    for piece in expansion.expanding(raw, limit):
        pieces.append(piece)
        if len(raw) > expansion.SLICE or len(piece) > expansion.SLICE:
            await asyncio.sleep(0)
    return b"".join(pieces)


async def name_model(call: Call, request: Request, snapshot: Snapshot, fleet: Fleet) -> None:
    """Finds out which model a request means, and writes it into the request. Raises BadRequest, NotFound."""
    assert call.route is not None
    assert call.route.endpoint is not None
    assert call.key is not None
    endpoint = call.route.endpoint
    asked = request.get("model") if len(endpoint.names) == 1 else _one_name(request, endpoint)
    try:
        call.model = resolve_model(snapshot, call.key, call.route, asked, fleet.survey)
    except NotFound as refusal:
        if refusal.code != NO_DEFAULT_MODEL:
            raise
        # The gateway may have just started, or the first model may have just been pulled.
        await fleet.refresh(tags=True)
        call.model = resolve_model(snapshot, call.key, call.route, asked, fleet.survey)
    call.asked = str(asked).strip()
    request["model"] = call.model.served.upstream


async def _object_in(raw: bytes, schema: body.Schema) -> Request:
    """Other calls go on between the steps of reading a large body (J6)."""
    for _ in body.weighing(raw):
        await asyncio.sleep(0)
    request = body.parsed(raw)
    await asyncio.sleep(0)
    return body.conform("", request, schema)


def _one_name(request: Request, endpoint: Endpoint) -> Any:
    """Some endpoints take an older field for `model`; both at once could name two models (M1)."""
    given = [value for name in endpoint.names if (value := request.pop(name, None))]
    if len(given) > 1:
        raise BadRequest(f'give "{endpoint.names[0]}" or "{endpoint.names[1]}", not both')
    return given[0] if given else None


def govern(call: Call, request: Request, snapshot: Snapshot, configuration: Configuration) -> None:
    """Writes policy into a request whose model is known. Raises BadRequest, Forbidden."""
    assert call.route is not None
    assert call.route.endpoint is not None
    assert call.key is not None
    assert call.model is not None
    endpoint = call.route.endpoint
    if not call.key.may_manage and endpoint.unloads(request):
        call.answered_as_unloaded, call.adjusted = True, ["keep_alive"]
        return
    pin = pin_of(call.key, call.model.policy, snapshot, configuration)
    call.output_cap, call.adjusted, call.context, call.hides_usage = endpoint.govern(request, pin)


def pin_of(key: Key, policy: Policy, snapshot: Snapshot, configuration: Configuration) -> Pin:
    identity = (key.max_output_tokens, key.may_manage, key.may_use_cloud, policy.pattern)
    pin = snapshot.pins.get(identity)
    if pin is not None:
        return pin
    caps = [cap for cap in (key.max_output_tokens, policy.max_output_tokens) if cap]
    pin = snapshot.pins[identity] = Pin(
        output_cap=min(caps) if caps else configuration.max_output_tokens,
        output_default=configuration.default_output_tokens,
        num_ctx=policy.num_ctx,
        load_options=policy.load_options,
        keep_alive=policy.keep_alive,
        may_unload=key.may_manage,
        may_use_cloud=key.may_use_cloud,
    )
    return pin


def note_client(call: Call, client: Client) -> None:
    """What the client says of itself, for the record."""
    agent, request_id, user = map(client.header, _SAID_OF_ITSELF)
    if agent is not None:
        call.user_agent = header_rules.stored_text(agent.decode("latin-1"), 256)
    if request_id is not None:
        call.client_request_id = header_rules.client_request_id(request_id)
    if user is not None:
        call.end_user = header_rules.stored_text(user.decode("latin-1"), 128)


def unloaded(call: Call) -> bytes:
    """What Ollama answers to an unload. An ordinary key does not unload a model for everybody (design §11)."""
    assert call.route is not None
    said: Request = {"model": call.asked, "created_at": call.started_text}
    if call.route.path == "/api/chat":
        said["message"] = {"role": "assistant", "content": ""}
    else:
        said["response"] = ""
    return go_json({**said, "done": True, "done_reason": "unload"})
