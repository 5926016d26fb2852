"""Calls of pass-through routes that name no model: to the one backend that is meant, without a slot."""

from proxy import body
from proxy.call import Call
from proxy.client import Client
from proxy.configuration import Configuration
from proxy.dialects.base import Request, in_json
from proxy.dispatch import Dispatch
from proxy.errors import BadRequest, Interruption, UnsupportedEncoding
from proxy.fleet.state import BackendState
from proxy.management_calls import ManagementCall
from proxy.metering import passed
from proxy.pass_through import NOTHING_KNOWN, names_a_model
from proxy.relay import Relay, refusal_of
from proxy.requests import note_client
from proxy.routes import Right
from proxy.upstream.wire import Answer


async def read_passed(call: Call, client: Client, configuration: Configuration) -> Request:
    """The body that a backend will get. Raises Refusal, also where it names a model after all."""
    encoding = client.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedEncoding("unsupported_encoding", "Send the body without Content-Encoding.")
    note_client(call, client)
    if call.method != "POST":
        return {}
    raw = await client.body(configuration.max_body_bytes)
    call.bytes_in = call.prompt_bytes = len(raw)
    request = body.read(raw, NOTHING_KNOWN) if raw.strip() else {}
    if names_a_model(request):
        message = "This route is set up for calls that name no model. An administrator can say that its calls name one."
        raise BadRequest(message, "model_not_expected")
    return request


class PassedCall(ManagementCall):
    def _written(self, request: Request) -> bytes:
        self.content_type, payload = in_json(request)
        return payload if self.call.method == "POST" else b""

    def _listen(self) -> None:
        Dispatch._listen(self)

    async def _send(self, payload: bytes) -> Answer:
        call = self.call
        assert call.route is not None
        if call.method == "POST":
            return await self.target.pool.exchange(self._request(self.target, payload))
        return await self.target.pool.exchange((self._head(self.target, call.route.upstream, b""), b""))

    async def _pass_on(self, state: BackendState, answer: Answer) -> None:
        call = self.call
        if answer.status != 200:
            raise await refusal_of(answer, call)
        gap = self.runtime.configuration.gap_seconds
        call.end_within(self.runtime.configuration.total_seconds)
        call.expect_within(gap, Interruption.GAP)
        kind = answer.header(b"content-type")
        call.stream = passed.is_stream(kind)
        assert call.route is not None
        generates = call.route.right is Right.INFER
        # By how much a stream may go on.
        call.output_cap = self.runtime.configuration.max_output_tokens if generates else 0
        meter = passed.meter(kind, call.bytes_in) if generates else passed.idle_meter(kind)
        await Relay(call, self.client, answer, self._headers(), gap, self._settle).run(meter)
