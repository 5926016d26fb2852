"""What every page is sent with: an id that is also in the log, and a policy that lets nothing foreign in (T8, T12)."""

import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from gateway_site.logs import request_id
from proxy.client_address import is_proxy

Answer = Callable[[HttpRequest], HttpResponseBase]
AsyncAnswer = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def page_headers(get_response: Answer | AsyncAnswer) -> Answer | AsyncAnswer:
    """The outermost middleware, so that whatever is logged about a page bears its id."""
    policy = content_security_policy(settings.CSP_FORM_ACTIONS)
    asked_by_machines = {settings.METRICS_PATH, "/livez", "/readyz"}

    def begin(request: HttpRequest) -> None:
        peer = request.META.get("REMOTE_ADDR", "")
        if not is_proxy(peer, settings.TRUSTED_PROXIES, trusts_unix=settings.TRUSTS_UNIX):
            request.META.pop("HTTP_X_FORWARDED_PROTO", None)
        if request.path in asked_by_machines:
            # Orchestrators and Prometheus ask by address, and get nothing that a foreign page could want.
            request.META["HTTP_HOST"] = urlsplit(settings.SITE_URL).netloc
        # Never the client's: it could forge a line of somebody else's in the log.
        request.id = str(uuid.uuid4())  # type: ignore[attr-defined]
        request_id.set(request.id)  # type: ignore[attr-defined]

    def finish(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        response.headers["x-request-id"] = request.id  # type: ignore[attr-defined]
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
        if not request.path.startswith(f"/{settings.STATIC_URL.strip('/')}/"):
            # Of pages with keys and figures no copy is left behind on a shared machine.
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            begin(request)
            return finish(request, await get_response(request))  # type: ignore[misc]

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase:
        begin(request)
        return finish(request, get_response(request))  # type: ignore[arg-type]

    return answer


def content_security_policy(form_actions: list[str]) -> str:
    """`form_actions`: origins besides our own that a form may lead to; browsers hold redirects against it as well."""
    rules = {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "font-src": ["'self'"],
        "form-action": ["'self'", *form_actions],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in rules.items())
