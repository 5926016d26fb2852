"""The composition root: what is answered by the data plane, and what by Django."""

import asyncio
import atexit
import logging
import os
from collections.abc import Awaitable

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_site.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator, WebsocketDenier  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import DatabaseError, InterfaceError  # noqa: E402
from django.urls import path as at  # noqa: E402
from django.urls import re_path  # noqa: E402

from gateway_site.daphne_server import answers  # noqa: E402
from gateway_site.page_places import NoPlace, Places  # noqa: E402
from proxy import door  # noqa: E402
from proxy.client import Receive, Scope, Send  # noqa: E402
from proxy.consumers import GatewayConsumer  # noqa: E402
from proxy.live.chat import ChatConsumer  # noqa: E402
from proxy.live.consumers import LiveConsumer  # noqa: E402
from proxy.routes import belongs_to_calls  # noqa: E402
from proxy.runtime import Runtime  # noqa: E402

logger = logging.getLogger(__name__)

# What lives as long as the process. It starts itself with the first request, be it for /readyz, and ends itself at
# exit: Daphne sends no lifespan events.
gateway = Runtime(settings.GATEWAY)
atexit.register(gateway.close_at_exit)
calls = GatewayConsumer.as_asgi(runtime=gateway)
pages = get_asgi_application()
# Seconds, and pages at a time.
PAGE_PATIENCE, PAGES_AT_ONCE = 15.0, 4
people = Places(pages, PAGES_AT_ONCE, PAGE_PATIENCE)


# All that the port for metrics answers.
ASKED_BY_MACHINES = {settings.METRICS_PATH.encode(), b"/livez", b"/readyz"}


SHUT_OUT = (
    "This address is shut out by an IP rule of the gateway.\n"
    "Locked out by mistake? The pages open on the machine itself, and at its shell: manage.py remove_ip_rule\n"
)
TOO_BUSY = "The gateway works on as many pages as it can. Try again in a moment. Calls are not concerned.\n"
RULES_UNKNOWN = "The gateway does not know its IP rules yet: its database does not answer. Try again.\n"


# What programs ask besides calls, with a token and never with a cookie. It stays on the port of the calls.
FOR_PROGRAMS = (b"/manage/api/", b"/config/", b"/analytics/", b"/test")


def _is_elsewhere(path: bytes, port: int | None) -> bool:
    """Whether a path belongs to another port: pages may have one of their own, so that nothing that a backend says is
    ever of their origin (T9)."""
    if settings.METRICS_PORT and port == settings.METRICS_PORT:
        return path not in ASKED_BY_MACHINES
    if not settings.ADMIN_PORT:
        return False
    if port == settings.ADMIN_PORT:
        return path != b"/" and belongs_to_calls(path)
    return not (belongs_to_calls(path) or path in ASKED_BY_MACHINES or path.startswith(FOR_PROGRAMS))


def _port_of(scope: Scope) -> int | None:
    return (scope.get("server") or (None, None))[1]


async def say(send: Send, status: int, text: str = "") -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *([(b"retry-after", b"2")] if status == 503 else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def page(path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """All that is no call: for those whom the rules for all let in (I6)."""
    # Says that the process runs, and nothing else. Refused, it would have an orchestrator restart us.
    if path != b"/livez":
        if gateway.snapshot is None and path in ASKED_BY_MACHINES:
            pass  # "not ready" must be heard while there are no rules; METRICS_NETWORKS bounds who hears it
        else:
            try:
                welcome = await door.lets_in(gateway, scope)
            except (DatabaseError, InterfaceError):
                await say(send, 503, RULES_UNKNOWN)
                return
            if not welcome:
                gateway.worker_reports.refused(gateway.now(), "ip_denied", "")
                await say(send, 403, SHUT_OUT)
                return
    if path in ASKED_BY_MACHINES:
        await pages(scope, receive, send)  # type: ignore[arg-type]  # ASGI's events are mappings of any kind
        return
    try:
        await people(scope, receive, send)
    except NoPlace:
        await say(send, 503, TOO_BUSY)


def http(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    if not gateway.is_started:
        asyncio.ensure_future(gateway.start())  # noqa: RUF006 - the runtime keeps it
    path = scope.get("raw_path") or scope["path"].encode()
    if (settings.METRICS_PORT or settings.ADMIN_PORT) and _is_elsewhere(path, _port_of(scope)):
        return say(send, 404)
    if belongs_to_calls(path) and not (path == b"/" and _wants_pages(scope)):
        if "extensions" not in scope and (request := answers.request_behind(send)) is not None:
            return answers.answer(calls, scope, receive, send, request)
        return calls(scope, receive, send)  # type: ignore[no-any-return]  # Channels has no types
    return page(path, scope, receive, send)


def _wants_pages(scope: Scope) -> bool:
    if settings.ADMIN_PORT:
        return _port_of(scope) == settings.ADMIN_PORT
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


# Strangers are turned away without the help of the channel layer, which may be away.
WebsocketDenier.channel_layer_alias = "none"
sockets = AllowedHostsOriginValidator(
    AuthMiddlewareStack(
        URLRouter(
            [
                at("ws/live", LiveConsumer.as_asgi(runtime=gateway)),
                at("ws/chat", ChatConsumer.as_asgi(runtime=gateway)),
                re_path("", WebsocketDenier.as_asgi()),
            ]
        )
    )
)


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    if (settings.METRICS_PORT or settings.ADMIN_PORT) and _is_elsewhere(b"/ws/", _port_of(scope)):
        await send({"type": "websocket.close"})
        return
    try:
        if not await door.lets_in(gateway, scope):
            gateway.worker_reports.refused(gateway.now(), "ip_denied", "")
            await send({"type": "websocket.close"})
            return
        await sockets(scope, receive, send)
    except (DatabaseError, InterfaceError) as exc:
        logger.warning("A live page could not be opened: the database does not answer (%s)", type(exc).__name__)
        await send({"type": "websocket.close", "code": 1013})  # try again later


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
