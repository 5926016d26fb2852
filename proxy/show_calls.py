"""/api/show for keys that do not manage models: read whole, and passed on without what is not for them (T4)."""

import orjson

from proxy.dialects.base import go_json
from proxy.dialects.ollama_show import trim_show
from proxy.dispatch import Dispatch
from proxy.errors import BrokenAnswer, Interruption
from proxy.fleet.state import BackendState
from proxy.relay import check_encoding
from proxy.upstream.wire import Answer

# Ten times what the longest licence and list of tensors make.
MAX_ANSWER = 4 << 20


class ShowCall(Dispatch):
    async def _pass_on(self, state: BackendState, answer: Answer) -> None:
        call = self.call
        call.meter = None
        check_encoding(answer)
        said = await self._read(answer)
        call.adjusted = [*call.adjusted, *trim_show(said)]
        body = go_json(said)
        headers = self._headers()
        headers += [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        call.status, call.outcome, call.bytes_out = 200, "ok", len(body)
        call.headers_sent = True
        call.deadline = 0.0
        state.breaker.succeeded()
        await self.client.start(200, headers)
        self._settle()
        await self.client.end(body)

    async def _read(self, answer: Answer) -> dict[str, object]:
        raw = bytearray()
        while chunk := await answer.read():
            if not self.call.first_byte_at:
                self.call.note_first_byte()
            raw += chunk
            if len(raw) > MAX_ANSWER:
                raise BrokenAnswer(f"an answer of more than {MAX_ANSWER} bytes")
            self.call.expect_within(self.runtime.configuration.gap_seconds, Interruption.GAP)
        try:
            said = orjson.loads(raw)
        except orjson.JSONDecodeError:
            said = None
        if not isinstance(said, dict) or said.get("error"):
            raise BrokenAnswer("no description of a model")
        return said
