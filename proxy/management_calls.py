"""Calls that manage the models of one backend: pull, push, create, copy, delete, and the blobs they are made of.

They need the right to manage, take no slot and use no tokens, and are never sent a second time. A download or an upload
may take hours: what is judged is silence.
"""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from proxy import body
from proxy.admission import NOT_ACCEPTED
from proxy.call import Call
from proxy.client import Client, ClientGone
from proxy.configuration import Configuration
from proxy.dialects import ollama_management
from proxy.dialects.base import Request, in_json
from proxy.dialects.ollama_management import Named, Operation
from proxy.dispatch import Dispatch
from proxy.errors import (
    BackendFault,
    BadGateway,
    BadRequest,
    BrokenAnswer,
    Forbidden,
    Interruption,
    Refusal,
    Unauthorized,
    Unreachable,
    UnsupportedEncoding,
)
from proxy.fleet.state import BackendState
from proxy.metering.progress import ProgressMeter
from proxy.model_names import InvalidModelName, ModelName, parse
from proxy.relay import Relay, refusal_of, scrubbed
from proxy.requests import note_client
from proxy.runtime import Runtime
from proxy.snapshot import NO_POLICY, Key, Model
from proxy.upstream.wire import Answer

logger = logging.getLogger(__name__)

BACKEND_HEADER = b"x-gateway-backend"
# Whose models anybody with the right to manage may fetch; other hosts must be named in the key's list of models.
REGISTRIES = ("registry.ollama.ai", "hf.co", "huggingface.co")
# The most that is read of an answer that should be empty.
MAX_EMPTY = 4096


async def read_operation(call: Call, client: Client, configuration: Configuration) -> Request:
    """The checked body that a backend will get, and on the call which models it is about. Raises Refusal."""
    assert call.route is not None
    encoding = client.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedEncoding("unsupported_encoding", "Send the body without Content-Encoding.")
    note_client(call, client)
    operation = call.route.operation
    if operation is None:
        call.upstream = call.route.upstream + ollama_management.digest(call.parameter).encode()
        return {}
    raw = await client.body(configuration.max_body_bytes)
    call.bytes_in = len(raw)
    request = body.read(raw, operation.schema)
    changed: list[str] = []
    if ollama_management.reduced(request, operation):
        # Not by name: what a client makes up is no text for a header of ours.
        changed.append("unknown fields")
    named = [(field, name) for field in operation.names if (name := _name_in(request, field)) is not None]
    assert call.key is not None
    for field, name in named:
        _check_name(call.key, call.route.path, field, name)
        request[field.field] = name.shown
    if request.pop("insecure", False):
        _check_insecure(named)
        changed.append("insecure")
    if operation.reports_progress:
        call.stream = ollama_management.wants_stream(request)
        # Always: whoever waits for one object waits for hours, and this tells that it still goes on.
        request["stream"] = True
    call.manages = tuple(name for _, name in named)
    first = call.manages[0]
    call.asked, call.model = first.shown, Model(first, first, True, NO_POLICY)
    call.adjusted = changed
    return request


def _name_in(request: Request, field: Named) -> ModelName | None:
    """Raises BadRequest. Open WebUI sends both names for one model."""
    given = [value for name in (field.field, field.older) if name and (value := request.pop(name, None))]
    if not given:
        if field.required:
            raise BadRequest(field.missing, "invalid_model_name")
        return None
    try:
        names = [parse(text) for text in given]
    except InvalidModelName:
        raise BadRequest(field.invalid.format(given[0][:200]), "invalid_model_name") from None
    if len({name.canonical for name in names}) > 1:
        raise BadRequest(f'"{field.field}" and "{field.older}" name different models')
    return names[0]


def _check_name(key: Key, path: str, field: Named, name: ModelName) -> None:
    """Raises Forbidden where the key may not manage the model, or have it fetched from where it is."""
    if not key.may_use(name.canonical):
        raise Forbidden("model_not_allowed", f"This API key may not manage '{name.shown}': see its list of models.")
    if name.cloud and not key.may_use_cloud and path != "/api/delete":
        raise Forbidden("cloud_not_allowed", f"'{name.shown}' runs in the cloud, which this API key may not use.")
    host = _host(name)
    # A pattern like "*" does not name a host.
    if field.fetched and host not in REGISTRIES and not any(pattern.startswith(f"{host}/") for pattern in key.models):
        message = (
            f"'{name.shown}' is on {host}. Through the gateway models come from {', '.join(REGISTRIES)}; for another "
            f'host, the list of models of the key must name it, as in "{host}/*".'
        )
        raise Forbidden("registry_not_allowed", message)


def _check_insecure(named: Sequence[tuple[Named, ModelName]]) -> None:
    """The well-known registries have TLS, so that nothing is lost without the flag. Raises Forbidden elsewhere."""
    for field, name in named:
        if field.fetched and _host(name) not in REGISTRIES:
            message = (
                '"insecure" is not passed on. Give the registry a certificate that the backend trusts, or run the '
                "ollama command on the backend itself."
            )
            raise Forbidden("insecure_refused", message)


def _host(name: ModelName) -> str:
    host, slash, rest = name.canonical.partition("/")
    return host if slash and "/" in rest else REGISTRIES[0]


class ManagementCall(Dispatch):
    """One admitted call, on the one backend that it is for."""

    # A registry that is slow, or a disk that is full, does not make a backend unfit for calls.
    blames_backends = False

    def __init__(self, runtime: Runtime, call: Call, client: Client) -> None:
        super().__init__(runtime, call, client)
        self.target: BackendState

    @property
    def operation(self) -> Operation | None:
        assert self.call.route is not None
        return self.call.route.operation

    async def run(self, request: Request) -> Refusal | None:
        self.target = await self._find_target()
        if not self.runtime.may_go_on(self.call):
            raise Unauthorized("invalid_key", NOT_ACCEPTED)  # withdrawn while backends were asked (A8)
        self._check_weights(request)
        return await super().run(request)

    async def _find_target(self) -> BackendState:
        call, operation = self.call, self.operation
        wanted = (self.client.header(BACKEND_HEADER) or b"").decode("utf-8", "replace").strip()
        model = call.model if operation is not None and operation.needs_model else None
        return await self.runtime.fleet.target_for(wanted, model)

    def _check_weights(self, request: Request) -> None:
        """A model that sends prompts away would go on to do so under a name that does not tell (M2)."""
        key, operation = self.call.key, self.operation
        assert key is not None
        source = request.get(operation.shares_weights) if operation is not None else None
        if source is None or key.may_use_cloud:
            return
        installed = self.target.models.get(parse(source).canonical)
        if installed is not None and installed.remote:
            raise Forbidden("cloud_not_allowed", f"'{source}' runs in the cloud, which this API key may not use.")

    def _written(self, request: Request) -> bytes:
        self.content_type, payload = in_json(request)
        return payload

    def _listen(self) -> None:
        self.client.on_departure(self.call.interrupt, body_read=self.operation is not None)

    async def _relay(self, payload: bytes) -> None:
        call, state = self.call, self.target
        call.backend = state
        call.attempts = 1
        call.dispatched_at = time.monotonic()
        call.expect_within(self.runtime.configuration.first_byte_seconds, Interruption.FIRST_BYTE)
        try:
            answer = await self._send(payload)
            try:
                await self._pass_on(state, answer)
            finally:
                answer.close()
        except Unreachable as exc:
            logger.warning("Backend %s cannot be reached: %s", state.name, exc)
            self.runtime.fleet.failed(state, str(exc))
            raise BadGateway("backend_unreachable", f"The backend cannot be reached. Our id is {call.id}.") from None
        except BackendFault as exc:
            logger.warning("Backend %s failed %s: %s", state.name, call.id, exc)
            raise BadGateway("backend_broken", f"The backend gave no valid answer. Our id is {call.id}.") from None
        except ClientGone:
            call.interruption = Interruption.CLIENT_GONE
            raise self._interrupted(Interruption.CLIENT_GONE) from None

    async def _send(self, payload: bytes) -> Answer:
        call, client, pool = self.call, self.client, self.target.pool
        assert call.route is not None
        if self.operation is not None:
            return await pool.exchange(self._request(self.target, payload))
        if call.method != "POST":
            return await pool.exchange((self._head(self.target, call.upstream, b""), b""))
        length = client.header(b"content-length") or b""
        framing = b"content-length: %b" % length if length.isdigit() else b"transfer-encoding: chunked"
        head = self._head(self.target, call.upstream, b"content-type: application/octet-stream\r\n%b\r\n" % framing)
        async with aclosing(self._upload()) as pieces:
            return await pool.exchange((head, b""), pieces)

    async def _upload(self) -> AsyncGenerator[bytes, None]:
        """The client's body. How slow a client may be its server judges (N5); how slow a backend may be we do."""
        call, configuration = self.call, self.runtime.configuration
        call.deadline = 0.0
        async with aclosing(self.client.chunks()) as pieces:
            async for piece in pieces:
                call.bytes_in += len(piece)
                call.expect_within(configuration.gap_seconds, Interruption.GAP)
                yield piece
                call.deadline = 0.0
        call.expect_within(configuration.first_byte_seconds, Interruption.FIRST_BYTE)

    async def _pass_on(self, state: BackendState, answer: Answer) -> None:
        call, operation = self.call, self.operation
        # Before it only waited for its client, if the answer came before the whole of an upload.
        call.expect_within(self.runtime.configuration.gap_seconds, Interruption.GAP)
        if answer.status == 200 and operation is not None and operation.reports_progress:
            if call.stream:
                gap = self.runtime.configuration.gap_seconds
                await Relay(call, self.client, answer, self._headers(), gap, self._finish).run(ProgressMeter())
            else:
                await self._collect(answer)
        elif answer.status in (200, 201) or (answer.status == 404 and call.method == "HEAD"):
            await self._acknowledge(answer)
        else:
            if answer.status == 404 and operation is not None and operation.needs_model:
                assert call.model is not None
                self.runtime.fleet.lacks(state, call.model.served.canonical)
            raise await refusal_of(answer, call)

    async def _collect(self, answer: Answer) -> None:
        """Answers the last object of a stream that the client wants no other of."""
        call, meter = self.call, ProgressMeter()
        call.meter = meter
        try:
            while chunk := await answer.read():
                if not call.first_byte_at:
                    call.note_first_byte()
                meter.feed(chunk)
                call.expect_within(self.runtime.configuration.gap_seconds, Interruption.GAP)
        except BrokenAnswer as exc:
            logger.warning("Backend %s broke off %s: %s", self.target.name, call.id, exc)
        meter.finish()
        self._tell()
        if meter.error:
            raise BadGateway("backend_error", f"{scrubbed(meter.error)} (our request id is {call.id})")
        if not meter.complete:
            raise BadGateway("incomplete", f"The backend broke off its answer. Our request id is {call.id}.")
        await self._answer(200, meter.last, b"application/json")

    async def _acknowledge(self, answer: Answer) -> None:
        """Passes on an answer that is only a status."""
        size = 0
        while chunk := await answer.read():
            size += len(chunk)
            if size > MAX_EMPTY:
                raise BrokenAnswer("a body where there should be none")
        await self._answer(answer.status)

    async def _answer(self, status: int, said: bytes = b"", kind: bytes = b"") -> None:
        call = self.call
        headers = self._headers()
        if kind:
            headers.append((b"content-type", kind))
        headers.append((b"content-length", b"%d" % len(said)))
        call.status, call.outcome, call.bytes_out = status, "ok", len(said)
        call.headers_sent = True
        call.deadline = 0.0
        await self.client.start(status, headers)
        self._finish()
        await self.client.end(said)

    def _finish(self) -> None:
        """Before the last bytes leave, so that who has them has the record, whatever happens to us then (U1)."""
        self._tell()
        self._settle()

    def _tell(self) -> None:
        """What the backend has may have changed, also where the call broke off: every worker asks it anew."""
        if self.call.method == "HEAD":
            return
        backend = self.target.backend.id
        self.runtime.fleet.ask_again(backend)
        self.runtime.board.subscription.tell({"type": "models", "backend": backend})
