"""The WebSocket of the playground: calls like all others, made for somebody who is signed in with one of their keys.

A call takes the path that every call takes (proxy/consumers.py), from its body to its record: rights, IP rules, limits,
the line, metering. Only the credential is another: not the key's secret, which nobody has, but the session.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson
from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError

from proxy.admission import check_address, check_place, check_right, not_accepted
from proxy.call import Call
from proxy.client import DISCONNECT_EXTENSION, Client, Scope
from proxy.consumers import GatewayConsumer
from proxy.live.sockets import SignedInSocket, quiet
from proxy.runtime import Runtime
from proxy.snapshot import Key, Snapshot
from tenants.models import ApiKey, Membership, Role

logger = logging.getLogger(__name__)

PATH = "/api/chat"
USER_AGENT = b"ollama-gateway-playground"
# What an answer may hold that is no stream: an error.
MAX_ERROR = 64 << 10
FIELDS = ("model", "messages", "options", "think", "keep_alive")


class OwnCall(GatewayConsumer):
    """A call with a key that is known by its row. The rules judge it as if its secret had been sent."""

    def __init__(self, runtime: Runtime, key_id: int) -> None:
        super().__init__(runtime)
        self.key_id = key_id

    def authenticate(self, call: Call, client: Client, rules: Snapshot) -> Key:
        assert call.route is not None
        check_address(rules, call.address)
        key = rules.key(self.key_id, call.started_epoch)
        if key is None:
            raise not_accepted()
        call.key = key  # before it is judged: a refusal is told on its page
        check_place(key, call.address)
        check_right(key, call.route)
        return key


class Asking:
    """One call of a page: the server that the data plane sees, and the client that it answers to."""

    def __init__(self, page: "ChatConsumer", body: bytes) -> None:
        self.page = page
        self.body = body
        self.stopped = False
        self._gone = asyncio.Event()
        self._interrupt: Callable[[], None] | None = None
        self._asked = False
        self.status = 0
        self._rest = b""

    def scope(self) -> Scope:
        given = self.page.scope
        passed = [(name, value) for name, value in given["headers"] if name in (b"host", b"x-forwarded-for")]
        return {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "scheme": "http",
            "client": given.get("client"),
            "server": given.get("server"),
            "headers": [
                *passed,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(self.body)),
                (b"user-agent", USER_AGENT),
            ],
            "extensions": {DISCONNECT_EXTENSION: self._register},
        }

    def stop(self) -> None:
        """As if the client had left: the backend is let go at once, and the record says so."""
        self.stopped = True
        self._gone.set()
        if self._interrupt is not None:
            self._interrupt()

    def _register(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        if self.stopped:
            asyncio.get_running_loop().call_soon(interrupt)

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            headers = dict(event["headers"])
            await self._say({
                "type": "begun",
                "call": headers.get(b"x-request-id", b"").decode("latin-1"),
                "backend": headers.get(b"x-gateway-backend", b"").decode("latin-1"),
            })  # fmt: skip
            return
        if self.status != 200:
            self._rest = (self._rest + event.get("body", b""))[:MAX_ERROR]
            if not event.get("more_body"):
                await self._say({"type": "failed", "status": self.status, "why": _error_in(self._rest)})
            return
        *lines, self._rest = (self._rest + event.get("body", b"")).split(b"\n")
        for message in messages_in(lines):
            await self._say(message)

    async def _say(self, message: dict[str, Any]) -> None:
        if self.stopped:
            return
        try:
            await self.page.say(message)
        except Exception as exc:
            # Each server has an exception of its own for a page that has gone.
            logger.debug("A playground could not be written to: %r", exc)
            self.stop()


class ChatConsumer(SignedInSocket):
    """Takes `{"type": "ask", "key": prefix, "model": …, "messages": […]}` and `{"type": "stop"}`. Sends `begun`,
    `piece`, then one of `ended`, `failed`, `stopped`; `refused` for what was not even tried."""

    longest = 64 << 10

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.asking: Asking | None = None
        self._making: asyncio.Task[None] | None = None

    def left(self) -> None:
        if self.asking is not None:
            self.asking.stop()

    async def hear(self, message: Any) -> bool:
        match message:
            case {"type": "stop"}:
                if self.asking is not None:
                    self.asking.stop()
                    await self.say({"type": "stopped"})
                return True
            case {"type": "ask", "key": str(prefix), "model": str(), "messages": list()}:
                await self._ask(prefix, message)
                return True
        return False

    async def _ask(self, prefix: str, message: dict[str, Any]) -> None:
        if self.asking is not None and not self.asking.stopped:
            await self.say({"type": "refused", "why": "An answer is on its way. Stop it first."})
            return
        try:
            key_id = await self._own_key(prefix)
        except (DatabaseError, InterfaceError):
            await self.say({"type": "refused", "why": "The database does not answer. Try again."})
            return
        if key_id is None:
            await self.say({"type": "refused", "why": "This is no key of yours that works. Choose another."})
            return
        body = {name: message[name] for name in FIELDS if name in message}
        asking = self.asking = Asking(self, orjson.dumps({**body, "stream": True}))
        # Not among the tasks that end with the page: it ends as any call whose client has left.
        self._making = asyncio.create_task(quiet(self._make(asking, key_id)))
        _making.add(self._making)
        self._making.add_done_callback(_making.discard)

    async def _make(self, asking: Asking, key_id: int) -> None:
        try:
            await OwnCall(self.runtime, key_id)(asking.scope(), asking.receive, asking.send)
        finally:
            if self.asking is asking:
                self.asking = None

    async def _own_key(self, prefix: str) -> int | None:
        assert self.viewer is not None
        found: int | None = await database_sync_to_async(_key_of)(self.viewer.user_id, prefix)
        return found


# The event loop alone would let go of them.
_making: set[asyncio.Task[None]] = set()


def _key_of(user_id: int, prefix: str) -> int | None:
    """A key that somebody has for themself, where they may have keys, as on the page; whether it may be used is the
    rules' to say."""
    memberships = Membership.objects.filter(user=user_id, tenant__archived_at=None).exclude(role=Role.VIEWER)
    keys = ApiKey.objects.filter(user=user_id, tenant__in=memberships.values("tenant"), revoked_at=None)
    return keys.filter(prefix=prefix.replace("\x00", "")).values_list("pk", flat=True).first()


def messages_in(lines: list[bytes]) -> list[dict[str, Any]]:
    """What whole lines of a stream say: the text of all of them together, and how it ended.

    A backend may write anything; what has not the form that is known says nothing.
    """
    text, thinking = "", ""
    last: dict[str, Any] | None = None
    for line in lines:
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(said, dict):
            continue
        if error := said.get("error"):
            last = {"type": "failed", "status": 0, "why": str(error)}
            continue
        text += _text_in(said, "content")
        thinking += _text_in(said, "thinking")
        if said.get("done"):
            last = {
                "type": "ended",
                "prompt_tokens": said.get("prompt_eval_count"),
                "completion_tokens": said.get("eval_count"),
                "decode_ms": _milliseconds(said.get("eval_duration")),
                "total_ms": _milliseconds(said.get("total_duration")),
                "reason": said.get("done_reason"),
            }
    found: list[dict[str, Any]] = []
    if text or thinking:
        found.append({"type": "piece", "text": text, "thinking": thinking})
    if last is not None:
        found.append(last)
    return found


def _text_in(said: dict[str, Any], name: str) -> str:
    message = said.get("message")
    text = message.get(name) if isinstance(message, dict) else None
    return text if isinstance(text, str) else ""


def _milliseconds(nanoseconds: Any) -> float:
    return nanoseconds / 1e6 if isinstance(nanoseconds, int | float) else 0.0


def _error_in(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "The gateway refused the call."
