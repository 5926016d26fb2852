"""The path of a call: the steps, in order."""

import logging
from collections.abc import Mapping

from channels.consumer import AsyncConsumer

from proxy import headers as header_rules
from proxy import listings
from proxy.admission import NOT_ACCEPTED, check_address
from proxy.borrowed_places import FOREIGN_PAGE, check_unborrowed
from proxy.cache.calls import SharingCall
from proxy.cache.embeddings import EmbeddingCall
from proxy.call import Call
from proxy.client import Client, ClientGone, Headers, Receive, Scope, Send
from proxy.client_address import client_address
from proxy.cors import WITHHELD, granted, preflight
from proxy.dialects import OLLAMA
from proxy.dialects.anthropic import token_count
from proxy.dialects.base import go_json
from proxy.dispatch import CLIENT_CLOSED_REQUEST, Dispatch
from proxy.errors import (
    Forbidden,
    InternalError,
    LoopDetected,
    MethodNotAllowed,
    NotFound,
    Refusal,
    TooManyRequests,
    Unauthorized,
)
from proxy.management_calls import ManagementCall, read_operation
from proxy.passed_calls import PassedCall, read_passed
from proxy.requests import read_request, unloaded
from proxy.routes import Kind, Route, find
from proxy.runtime import Runtime
from proxy.show_calls import ShowCall
from proxy.snapshot import Key, Snapshot

logger = logging.getLogger(__name__)

JSON = b"application/json; charset=utf-8"
PLAIN_JSON = b"application/json"  # as Ollama has it on the routes of others
TEXT = b"text/plain; charset=utf-8"

# Of keys with a cache policy.
SHARING: Mapping[Kind, type[Dispatch]] = {Kind.GENERATION: SharingCall, Kind.EMBEDDING: EmbeddingCall}


class GatewayConsumer(AsyncConsumer):  # type: ignore[misc]  # Channels has no types
    """Reads `receive` itself: Channels' dispatch would hop for each of the messages a large body arrives in."""

    def __init__(self, runtime: Runtime) -> None:
        """Made anew by Channels for each call: what can be worked out once is the runtime's."""
        self.runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.runtime.snapshot is None:
            await self.runtime.start()
        client = Client(scope, receive, send)
        call = self.new_call(scope, client)
        try:
            await self.answer(call, client)
        except Refusal as refusal:
            if call.reservation is None:
                self.runtime.answered(call, refusal.status, refusal.code)
            await self.refuse(call, client, refusal)
            if call.reservation is None:
                self.runtime.count_refusal(call, client.headers, refusal)
        except ClientGone:
            # Nobody to answer, and nothing was admitted.
            self.runtime.answered(call, CLIENT_CLOSED_REQUEST, "client_gone")
        except Exception:
            # An exception that escapes after the headers kills the reaper of Daphne 4.2:
            # every later failure in this process then hangs, instead of answering 500.
            logger.exception("Could not answer %s", call.id)
            if call.reservation is None:
                self.runtime.answered(call, 500, "internal_error")
            await self.refuse(call, client, InternalError())

    def new_call(self, scope: Scope, client: Client) -> Call:
        runtime = self.runtime
        forwarded: list[str] = []
        trusted, trusts_unix = runtime.configuration.trusted_proxies, runtime.configuration.trusts_unix
        if trusted or trusts_unix:
            forwarded = [value.decode("latin-1") for name, value in client.headers if name == b"x-forwarded-for"]
        address = client_address(client.peer, forwarded, trusted, trusts_unix=trusts_unix)
        epoch = runtime.now()
        raw_path = scope.get("raw_path") or scope["path"].encode()
        call = Call(runtime.ids.new(epoch), scope["method"], raw_path, address, epoch)
        if runtime.tracing is not None:
            call.trace = runtime.tracing.begin(client.headers)
        return call

    async def answer(self, call: Call, client: Client) -> None:
        runtime = self.runtime
        origin = client.header(b"origin")
        if origin is not None:
            permitted = self.runtime.origins.allow(origin, client.own_origin)
            client.added_headers = granted(origin) if permitted else WITHHELD
            if call.method == "OPTIONS" and client.header(b"access-control-request-method") is not None:
                await self.answer_preflight(call, client, permitted)
                return
        kind = self.find_route(call).kind
        if kind is Kind.ROOT:
            if call.path_key is not None:
                self.authenticate(call, client, runtime.rules())
            elif runtime.snapshot is not None:
                check_address(runtime.snapshot, call.address)
            await self.say(call, client, listings.ROOT, TEXT)
            return
        self.check_passable(client)
        rules = runtime.rules()
        key = self.authenticate(call, client, rules)
        if kind in listings.KINDS:
            await self.answer_listing(kind, call, client, key)
            return
        passed = kind is Kind.PASSED and call.route is not None and call.route.endpoint is None
        if passed:
            request = await read_passed(call, client, runtime.configuration)
        elif kind is Kind.MANAGE:
            request = await read_operation(call, client, runtime.configuration)
        else:
            request = await read_request(call, client, rules, runtime.configuration, runtime.fleet)
        if runtime.snapshot is not rules and not runtime.may_go_on(call):
            raise Unauthorized("invalid_key", NOT_ACCEPTED)  # withdrawn while the body was on its way (A8)
        if kind is Kind.COUNT:
            client.added_headers = [*client.added_headers, (b"x-gateway-estimated", b"true")]
            await self.say(call, client, go_json({"input_tokens": token_count(request)}), JSON)
            return
        if call.answered_as_unloaded:
            await self.say(call, client, unloaded(call), JSON)
            return
        dispatch: type[Dispatch]
        if passed:
            dispatch = PassedCall
        elif kind is Kind.MANAGE:
            dispatch = ManagementCall
        elif key.cache is not None and kind in SHARING:
            dispatch = SHARING[kind]
        else:
            dispatch = ShowCall if kind is Kind.SHOW and not key.may_manage else Dispatch
        refusal = await dispatch(runtime, call, client).run(request)
        if refusal is not None:
            await self.refuse(call, client, refusal)

    async def answer_listing(self, kind: Kind, call: Call, client: Client, key: Key) -> None:
        runtime = self.runtime
        # A gateway in front of us asks by itself when it wants to know; two in a ring would wait for each other.
        if kind not in (Kind.VERSION, Kind.STATUS) and client.header(header_rules.LOOP_MARKER) is None:
            await runtime.fleet.refresh(tags=kind is not Kind.PS)
        if kind is Kind.MODEL:
            said = listings.model(call.parameter, runtime.fleet, key, runtime.rules())
        else:
            said = listings.answer(kind, runtime.fleet, key, runtime.rules())
        await self.say(call, client, said, JSON if call.dialect is OLLAMA else PLAIN_JSON)

    async def answer_preflight(self, call: Call, client: Client, permitted: bool) -> None:
        """What a browser asks before a page may send a call. It carries no credential and contacts no backend."""
        check_address(self.runtime.rules(), call.address)
        methods, _ = self.routes_of(call)
        if not methods:
            raise NotFound("unknown_route", "404 page not found")
        if not permitted:
            raise Forbidden("origin_not_allowed", FOREIGN_PAGE)
        asked = client.header(b"access-control-request-headers") or b""
        headers = preflight(methods, asked, self.runtime.configuration.auth_header)
        self.runtime.answered(call, 204)
        await client.start(204, [*headers, (b"x-request-id", call.id.encode()), *header_rules.SAFETY])
        await client.end()

    def routes_of(self, call: Call) -> tuple[Mapping[str, Route], str]:
        """As routes.find; those that were added come after our own, which they can never replace."""
        methods, parameter = find(call.path)
        if not methods and self.runtime.snapshot is not None:
            methods = self.runtime.snapshot.tables.routes.get(call.path, methods)
        return methods, parameter

    def find_route(self, call: Call) -> Route:
        methods, call.parameter = self.routes_of(call)
        if not methods:
            raise NotFound("unknown_route", "404 page not found")
        route = call.route = methods.get(call.method)
        if route is None:
            allow = ", ".join(methods).encode()
            raise MethodNotAllowed("method_not_allowed", "405 method not allowed", headers={b"allow": allow})
        return route

    def check_passable(self, client: Client) -> None:
        """Refuses calls that came through ourselves, and all calls while the gateway ends."""
        marker = client.header(header_rules.LOOP_MARKER)
        if marker is not None:
            hops = [hop.strip() for hop in marker.split(b",")]
            if self.runtime.instance in hops or len(hops) > header_rules.MAX_HOPS:
                raise LoopDetected("loop", "This gateway is its own backend. Check the addresses of the backends.")
        self.runtime.check_open()

    def authenticate(self, call: Call, client: Client, rules: Snapshot) -> Key:
        runtime = self.runtime
        assert call.route is not None
        try:
            call.key = runtime.admission.admit(
                rules, call.route, client.headers, call.address, call.started_epoch, call.path_key
            )
            if call.key.acting:
                check_unborrowed(runtime, client.fields, client.own_origin, client.peer)
        except Unauthorized as refusal:
            if seconds := runtime.credential_failures.count(call.address):
                message = "Too many calls with keys that are not accepted came from this address."
                raise TooManyRequests("too_many_failures", message, retry_after=seconds) from None
            # The owner of the key finds the real cause by it.
            refusal.message = f"{refusal.message} (request id {call.id})"
            raise
        return call.key

    async def say(self, call: Call, client: Client, body: bytes, kind: bytes) -> None:
        """An answer of our own."""
        headers: Headers = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            *((name, call.id.encode()) for name in call.dialect.id_headers),
            *header_rules.SAFETY,
        ]
        if call.adjusted:
            headers.append((b"x-gateway-adjusted", ", ".join(call.adjusted).encode("ascii", "replace")))
        self.runtime.answered(call, 200)
        await client.start(200, headers)
        await client.end(b"" if call.method == "HEAD" else body)

    async def refuse(self, call: Call, client: Client, refusal: Refusal) -> None:
        """The error in the dialect of the route: an answer of its own, or the end of the stream that has begun."""
        arguments = (refusal.status, refusal.code, refusal.message, call.id)
        if call.headers_sent:
            if call.stream:
                await client.end(call.dialect.stream_error(*arguments))
            # A unary answer that broke off cannot say so: left without its end, the server closes the connection.
            return
        body = call.dialect.error(*arguments, refusal.said)
        headers: Headers = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(body)),
            *((name, call.id.encode()) for name in call.dialect.id_headers),
            (b"x-gateway-error", refusal.code.encode()),
            *header_rules.SAFETY,
            *refusal.headers.items(),
        ]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(-(-refusal.retry_after // 1), 1)))
        if not refusal.may_be_retried and b"x-should-retry" not in refusal.headers:
            headers.append((b"x-should-retry", b"false"))  # once: SDKs take "false, false" for leave to wait
        call.headers_sent = True
        await client.start(refusal.status, headers)
        await client.end(b"" if call.method == "HEAD" else body)
