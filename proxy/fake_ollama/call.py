"""One call, and what its handler needs: the request, the answer, the server's state."""

import asyncio
from typing import TYPE_CHECKING, Any

from proxy.fake_ollama.calls import SeenCall
from proxy.fake_ollama.connection import Connection, Request
from proxy.fake_ollama.errors import RUNNER_DIED, ApiError, Cut, EmptyRequest, RunnerError, SilentEnd
from proxy.fake_ollama.faults import NO_FAULT, Fault
from proxy.fake_ollama.gojson import DecodeError, EmptyBody, Struct, decode, encode
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.names import InvalidName, Name, parse_name
from proxy.fake_ollama.wire import Answer

if TYPE_CHECKING:
    from proxy.fake_ollama.server import FakeOllama

JSON_UTF8 = "application/json; charset=utf-8"
JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
SIGN_IN = "https://ollama.com/connect?name=fake-host&key=c3NoLWVkMjU1MTkgZmFrZQ"


class Call:
    def __init__(
        self,
        server: "FakeOllama",
        connection: Connection,
        request: Request,
        seen: SeenCall,
        answer: Answer,
        path: str,
    ) -> None:
        self.server = server
        self.connection = connection
        self.request = request
        self.seen = seen
        self.answer = answer
        self.path = path
        self.parameter = ""
        self.fault: Fault = NO_FAULT
        self._held = False

    def meet(self, fault: Fault) -> None:
        self.fault = fault
        self.answer.spoil(fault)

    def bind(self, struct: Struct) -> dict[str, Any]:
        try:
            return decode(self.request.body, struct)
        except EmptyBody as error:
            raise EmptyRequest from error
        except DecodeError as error:
            raise ApiError(400, str(error)) from error

    # Models

    def name(self, text: str) -> Name:
        try:
            name = parse_name(text)
        except InvalidName as error:
            raise ApiError(400, str(error)) from error
        if name.cloud:
            raise ApiError(401, "unauthorized", extra={"signin_url": SIGN_IN})
        return name

    def model(self, text: str, *, quoted: str = "'", hint: str = "") -> Model:
        """The installed model of that name, or the 404 of the route."""
        found = None if self.fault.lacks_model else self.server.library.find(self.name(text))
        if found is None:
            raise ApiError(404, f"model {quoted}{text}{quoted} not found{hint}")
        return found

    # Faults in time

    async def hold_first_byte(self) -> None:
        """Where a fault delays the first byte. A generation holds its slot meanwhile, so it asks first."""
        if self.fault is NO_FAULT or self._held:
            return
        self._held = True
        if self.fault.slow_first_byte:
            await asyncio.sleep(self.fault.slow_first_byte)
        if self.fault.hang_before_headers:
            await self.server.gate.wait()

    async def step(self, sent: int) -> None:
        """Where a fault strikes a stream: after so many chunks."""
        fault = self.fault
        if sent and fault.gap:
            await asyncio.sleep(fault.gap)
        if fault.hang_after_chunks == sent:
            await self.server.gate.wait()
        if fault.error_after_chunks == sent:
            raise RunnerError(fault.error or RUNNER_DIED)
        if sent in (fault.eof_after_chunks, fault.repetition_stop_after):
            raise SilentEnd
        if fault.reset_after_chunks == sent:
            raise Cut(reset=True)

    # Answers

    async def reply(self, value: Any, status: int = 200) -> None:
        """JSON as gin writes it."""
        await self.hold_first_byte()
        await self.answer.whole(status, JSON_UTF8, encode(value))

    async def reply_line(self, value: Any, status: int = 200) -> None:
        """JSON as the middleware of the /v1 routes writes it: no charset, a newline at the end."""
        await self.hold_first_byte()
        await self.answer.whole(status, JSON, encode(value) + b"\n")

    async def reply_text(self, status: int, text: str, content_type: str = "text/plain") -> None:
        await self.hold_first_byte()
        await self.answer.whole(status, content_type, text.encode())

    async def reply_empty(self, status: int = 200) -> None:
        await self.hold_first_byte()
        await self.answer.whole(status, None)
