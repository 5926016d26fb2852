"""Addresses that no page of ours has."""

from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

Answer = Callable[[HttpRequest], HttpResponseBase]
AsyncAnswer = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def odd_addresses(get_response: Answer | AsyncAnswer) -> Answer | AsyncAnswer:
    """NUL, which PostgreSQL cannot be asked for (J8): 404 for a path with it, a name that nothing has. 400 for a filter
    of the admin, which asks the database for whatever is in the address; our own forms say what is wrong with it."""

    def look_at(request: HttpRequest) -> None:
        if "\0" in request.path_info:
            raise Http404
        if request.path_info.startswith("/admin/"):
            for _, values in request.GET.lists():
                if any("\0" in value for value in values):
                    raise BadRequest("NUL in a filter")

    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            look_at(request)
            return await get_response(request)  # type: ignore[misc]

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase:
        look_at(request)
        return get_response(request)  # type: ignore[return-value]

    return answer
