"""The composition root: what is answered by the data plane, and what by Django."""

import os
from collections.abc import Awaitable

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_site.settings")
django.setup()

from channels.routing import ProtocolTypeRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402

from proxy.client import Receive, Scope, Send  # noqa: E402
from proxy.consumers import GatewayConsumer  # noqa: E402
from proxy.routes import belongs_to_calls  # noqa: E402
from proxy.runtime import Runtime  # noqa: E402

# What lives as long as the process. It starts itself with the first call: Daphne sends no lifespan events.
gateway = Runtime(settings.GATEWAY)
calls = GatewayConsumer.as_asgi(runtime=gateway)
pages = get_asgi_application()


def http(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    path = scope.get("raw_path") or scope["path"].encode()
    if belongs_to_calls(path) and not (path == b"/" and _wants_pages(scope)):
        return calls(scope, receive, send)  # type: ignore[no-any-return]  # Channels has no types
    return pages(scope, receive, send)  # type: ignore[arg-type]  # ASGI's events are mappings of any kind


def _wants_pages(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


application = ProtocolTypeRouter({"http": http})
