"""What machines ask: is it alive, does it take calls, what does it count (threat T14)."""

from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from proxy.client_address import client_address, is_in

View = Callable[[HttpRequest], HttpResponse]


def for_metrics_networks(view: View) -> View:
    """404 to everybody but METRICS_NETWORKS, loopback by default, and who brings METRICS_TOKEN."""

    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
        peer, trusts_unix = request.META.get("REMOTE_ADDR", ""), settings.TRUSTS_UNIX
        address = client_address(peer, [forwarded], settings.TRUSTED_PROXIES, trusts_unix=trusts_unix)
        if (address is None or not is_in(address, settings.METRICS_NETWORKS)) and not _has_token(request):
            return HttpResponse(status=404)
        return view(request)

    return guarded


def _has_token(request: HttpRequest) -> bool:
    kind, _, sent = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    if kind.lower() != "bearer":
        return False
    # Each of them, so that the time says nothing.
    return any([constant_time_compare(sent.strip(), token) for token in settings.METRICS_TOKENS])  # noqa: C419


@require_safe
def livez(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain")


@require_safe
@for_metrics_networks
def readyz(request: HttpRequest) -> HttpResponse:
    from gateway_site.asgi import gateway  # the process's own, which imports this module

    if gateway.is_ready:
        return HttpResponse("ready", content_type="text/plain")
    return HttpResponse("not ready", status=503, content_type="text/plain", headers={"Retry-After": "2"})


@require_safe
@for_metrics_networks
def metrics(request: HttpRequest) -> HttpResponse:
    if not settings.METRICS_ENABLED:
        return HttpResponse(status=404)
    if settings.METRICS_PORT and request.META["SERVER_PORT"] != str(settings.METRICS_PORT):
        return HttpResponse(status=404)
    from gateway_site.asgi import gateway

    return HttpResponse(gateway.metrics_page(), content_type=CONTENT_TYPE_PLAIN_0_0_4)
