"""The listener, the state behind it, and the way of one request through it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from proxy.fake_ollama import control, routing
from proxy.fake_ollama.call import JSON, Call
from proxy.fake_ollama.calls import CallLog, SeenCall
from proxy.fake_ollama.clock import FOREVER
from proxy.fake_ollama.connection import BAD_REQUEST, Connection, Request
from proxy.fake_ollama.errors import BUSY, ApiError, Cut, RunnerError
from proxy.fake_ollama.faults import NO_FAULT, Fault, FaultBook, Gate
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.library import Library, Model
from proxy.fake_ollama.names import parse_name
from proxy.fake_ollama.refusals import refuse
from proxy.fake_ollama.scheduler import Scheduler
from proxy.fake_ollama.wire import Answer

logger = logging.getLogger(__name__)

DEFAULT_MODELS = ("llama3.2", "qwen3:8b", "nomic-embed-text")
BACKLOG = 4096


class FakeOllama:
    """An Ollama without a model in it. See `fault` for what can go wrong, `calls` for what it saw."""

    switches = frozenset(
        {
            "log_bodies",
            "tokens",
            "tokens_per_second",
            "load_seconds",
            "slots",
            "listen",
            "refuse_connections",
            "refuse_for",
            "drop_connections",
        }
    )

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        models: Iterable[str | Model] = DEFAULT_MODELS,
        slots: int = 1,
        vram: float = 16.0,
        load_seconds: float = 0.0,
        tokens_per_second: float = 0.0,
        tokens: int = 16,
        max_queue: int = 512,
        keep_alive: float = 300.0,
        version: str = "0.33.0",
        origins: Sequence[str] = (),
        log_bodies: bool = True,
    ) -> None:
        self.host = host
        self.port = port
        self.version = version
        self.origins = origins
        self.tokens = tokens
        self.tokens_per_second = tokens_per_second
        self.library = Library(as_model(model) for model in models)
        self.pullable: set[str] = set()
        self.log = CallLog(log_bodies=log_bodies)
        self.book = FaultBook()
        self.gate = Gate(self.log.changed)
        self.scheduler = Scheduler(
            self.log,
            self.gate,
            slots=slots,
            vram=vram,
            load_seconds=load_seconds,
            max_queue=max_queue,
            keep_alive=FOREVER if keep_alive < 0 else keep_alive,
        )
        self._listener: asyncio.Server | None = None
        self._back_later: asyncio.Task[None] | None = None
        self._connections: set[Connection] = set()
        self._opened = 0

    # Life

    async def start(self) -> None:
        self.scheduler.start()
        await self.listen()

    async def stop(self) -> None:
        if self._back_later is not None:
            self._back_later.cancel()
        await self.stop_listening()
        for connection in list(self._connections):
            connection.abandon()
        await self.scheduler.stop()
        while self._connections:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def __aenter__(self) -> "FakeOllama":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def listen(self) -> None:
        if self._listener is not None:
            return
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connect, self.host, self.port, backlog=BACKLOG)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """Refuse new connections; those that are open live on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    def drop_connections(self) -> None:
        """Reset every connection but those that steer."""
        for connection in list(self._connections):
            if not connection.steering:
                connection.reset()

    # Steering

    def faults(self, **fields: Any) -> Fault:
        """Add a rule; the fields are those of Fault."""
        fault = Fault(**fields)
        self.book.add(fault)
        return fault

    def clear_faults(self) -> None:
        self.book.clear()

    def release(self) -> None:
        """Let what hangs go on."""
        self.gate.release()

    def reset(self) -> None:
        """As after the start, but for the models and the connections."""
        self.clear_faults()
        self.release()
        self.scheduler.unload_all()
        self.log.clear()

    def add_model(self, model: str | Model) -> Model:
        added = as_model(model)
        self.library.add(added)
        return added

    def remove_model(self, name: str) -> None:
        self.library.remove(parse_name(name))

    def change_digest(self, name: str, digest: str) -> None:
        """As a pull does that finds a newer model: the name stays, the weights are others."""
        model = self.library.find(parse_name(name))
        if model is None:
            raise KeyError(name)
        model.digest = model.weights = digest

    async def switch(
        self,
        *,
        log_bodies: bool | None = None,
        tokens: int | None = None,
        tokens_per_second: float | None = None,
        load_seconds: float | None = None,
        slots: int | None = None,
        listen: bool = False,
        refuse_connections: bool = False,
        refuse_for: float = 0.0,
        drop_connections: bool = False,
    ) -> None:
        """Change what holds for the whole server."""
        if log_bodies is not None:
            self.log.log_bodies = log_bodies
        self.tokens = self.tokens if tokens is None else tokens
        self.tokens_per_second = self.tokens_per_second if tokens_per_second is None else tokens_per_second
        self.scheduler.load_seconds = self.scheduler.load_seconds if load_seconds is None else load_seconds
        self.scheduler.slots = self.scheduler.slots if slots is None else slots
        if refuse_connections or refuse_for:
            if self._back_later is not None:
                self._back_later.cancel()
            await self.stop_listening()
        if drop_connections:
            self.drop_connections()
        if listen:
            await self.listen()
        if refuse_for:
            self._back_later = asyncio.create_task(self._listen_after(refuse_for))

    async def _listen_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.listen()

    # What it saw

    @property
    def calls(self) -> list[SeenCall]:
        return list(self.log.calls)

    @property
    def paused(self) -> int:
        """Connections whose peers do not read."""
        return sum(connection.paused for connection in self._connections)

    def counts(self) -> dict[str, Any]:
        waiting = {runner.model.name: runner.waiting for runner in self.scheduler.runners.values()}
        return {
            **self.log.totals.as_json(),
            "hung": self.gate.waiting,
            "paused": self.paused,
            "load_queue": self.scheduler.queued,
            "loading": self.scheduler.loading.name if self.scheduler.loading else None,
            "waiting_for_slot": waiting,
        }

    async def saw(self, what: str, count: int = 1, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until so many calls, disconnects, … were seen since the start or the last reset; `idle` needs none."""
        values: dict[str, Callable[[], int]] = {
            "call": lambda: self.log.totals.calls,
            "disconnect": lambda: self.log.totals.disconnected_calls,
            "generation": lambda: self.log.totals.generations_started,
            "finished": lambda: self.log.totals.generations_finished,
            "running": lambda: self.log.totals.generations_running,
            "load": lambda: sum(self.log.totals.loads.values()),
            "load_aborted": lambda: self.log.totals.loads_aborted,
            "hung": lambda: self.gate.waiting,
            "paused": lambda: self.paused,
            "queued": lambda: self.scheduler.queued,
            "waiting": lambda: sum(runner.waiting for runner in self.scheduler.runners.values()),
        }
        if what == "idle":
            await self.log.until(lambda: not self.log.totals.running_calls, timeout)
            return
        if what not in values:
            raise ValueError(f"cannot wait for {what!r}")
        await self.log.until(lambda: values[what]() >= count, timeout)

    async def saw_call(self, count: int = 1, *, timeout: float = 5.0) -> SeenCall:  # noqa: ASYNC109
        await self.saw("call", count, timeout=timeout)
        return self.log.calls[count - 1]

    async def saw_disconnect(self, count: int = 1, *, timeout: float = 5.0) -> SeenCall:  # noqa: ASYNC109
        await self.saw("disconnect", count, timeout=timeout)
        return self.log.gone[count - 1]

    async def saw_running(self, count: int = 1, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        await self.saw("running", count, timeout=timeout)

    async def saw_idle(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        await self.saw("idle", timeout=timeout)

    # Connections

    def _connect(self) -> Connection:
        self._opened += 1
        return Connection(self, self._opened)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.log.totals.connections_opened += 1
        self.log.totals.connections_open += 1

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not connection.steering:
            self.log.totals.connections_open -= 1
            self.log.changed()

    def _counted(self, connection: Connection, *, steering: bool) -> None:
        if connection.steering is not steering:
            connection.steering = steering
            change = -1 if steering else 1
            self.log.totals.connections_opened += change
            self.log.totals.connections_open += change

    # One request

    async def serve(self, connection: Connection, request: Request) -> None:
        if request.target.startswith("/_fake/"):
            if connection.calls == 0:
                self._counted(connection, steering=True)
            await self._control(connection, request)
            return
        if connection.steering:
            self._counted(connection, steering=False)
        connection.calls += 1
        seen = self.log.open(connection.number, request.method, request.target, request.headers, request.body)
        connection.seen = seen
        if request.upload is not None:
            seen.received = request.upload.size
            self.log.changed()
        call = self._call(connection, request, seen)
        try:
            await self._answer(call)
            seen.complete = True
        except Cut as cut:
            await connection.flushed()
            connection.reset() if cut.reset else connection.close()
        except asyncio.CancelledError:
            # The caller left, or the server stops: this task has nothing more to do.
            connection.transport.abort()
        except Exception:
            # The last resort: a fake that fails silently would be taken for a fault of who calls it.
            logger.exception("Could not answer %s %s", request.method, request.target)
            connection.reset()
        finally:
            self.log.close(seen)
        self._finish(connection, call)

    def _finish(self, connection: Connection, call: Call) -> None:
        if connection.closing:
            return
        if not call.answer.keep_alive:
            connection.close()
        elif call.fault.close_idle_after_ms is not None:
            connection.close_when_idle(call.fault.close_idle_after_ms / 1000)

    async def _control(self, connection: Connection, request: Request) -> None:
        seen = SeenCall(-1, connection.number, request.method, request.target, request.headers, b"", 0.0)
        call = self._call(connection, request, seen)
        try:
            await control.answer(call)
        except ApiError as error:
            await call.answer.whole(error.status, JSON, encode({"error": error.text}) + b"\n")
        except asyncio.CancelledError:
            return
        self._finish(connection, call)

    def _call(self, connection: Connection, request: Request, seen: SeenCall) -> Call:
        answer = Answer(
            connection,
            seen,
            head_only=request.method == "HEAD",
            http11=request.http11,
            keep_alive=request.keep_alive,
        )
        path = routing.decoded_path(request.target)
        return Call(self, connection, request, seen, answer, "" if path is None else path)

    async def _answer(self, call: Call) -> None:
        if not call.path:
            call.answer.keep_alive = False
            call.seen.status = 400
            call.answer.line.write(BAD_REQUEST)
            return
        if self.book.rules:
            call.meet(self.book.take(call.path, model_of(call.request.body)))
        try:
            if call.fault is not NO_FAULT and await self._instead(call):
                return
            await routing.answer(call, call.request.target, self.origins)
        except RunnerError as error:
            await refuse(call, ApiError(error.status, error.text))
        except ApiError as error:
            await refuse(call, error)

    async def _instead(self, call: Call) -> bool:
        """Faults that answer in place of the handler."""
        fault, answer = call.fault, call.answer
        if not answers_itself(fault):
            return False
        await call.hold_first_byte()
        if fault.reset_before_headers or fault.close_before_headers:
            raise Cut(reset=fault.reset_before_headers)
        if fault.raw_bytes is not None:
            answer.line.write(fault.raw_bytes)
            answer.keep_alive = not fault.raw_close
        elif fault.switching_protocols:
            answer.line.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            call.seen.status = 101
        elif fault.redirect:
            await answer.whole(fault.redirect, None, b"", [("Location", fault.location)])
        elif fault.busy_503:
            raise ApiError(503, BUSY)
        elif fault.status is not None:
            raise ApiError(fault.status, error_text(fault))
        return True


def answers_itself(fault: Fault) -> bool:
    return bool(
        fault.reset_before_headers
        or fault.close_before_headers
        or fault.raw_bytes is not None
        or fault.switching_protocols
        or fault.redirect
        or fault.busy_503
        or fault.status is not None
    )


def error_text(fault: Fault) -> str:
    text = fault.error or "fault"
    if not fault.error_as_json:
        return text
    return orjson.dumps({"error": {"code": fault.status, "message": text, "type": "server_error"}}).decode()


def as_model(model: str | Model) -> Model:
    return Model(model) if isinstance(model, str) else model


def model_of(body: bytes) -> str | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value.get("model") or value.get("name") if isinstance(value, dict) else None
