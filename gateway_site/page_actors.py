"""Tells the audit who asks for a page, and from where (tenants/acting.py)."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from proxy.client_address import client_address
from tenants.acting import Via, acting

Answer = Callable[[HttpRequest], HttpResponseBase]
AsyncAnswer = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def page_actors(get_response: Answer | AsyncAnswer) -> Answer | AsyncAnswer:
    """Behind AuthenticationMiddleware."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            with _acting(request):
                return await get_response(request)  # type: ignore[misc]

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase:
        with _acting(request):
            return get_response(request)  # type: ignore[return-value]

    return answer


def _acting(request: HttpRequest) -> AbstractContextManager[None]:
    address = client_address(
        request.META.get("REMOTE_ADDR", ""),
        [request.META.get("HTTP_X_FORWARDED_FOR", "")],
        settings.TRUSTED_PROXIES,
        trusts_unix=settings.TRUSTS_UNIX,
    )
    return acting(
        # Asked for when something changes: most pages change nothing, and signing in changes who it is.
        lambda: request.user,
        str(address or ""),
        _way(request.path),
        getattr(request, "id", ""),
    )


def _way(path: str) -> str:
    if path.startswith("/admin/"):
        return Via.ADMIN
    return Via.API if path.startswith("/manage/api/") else Via.PAGES
