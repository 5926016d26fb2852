"""What a person sees when something went wrong: what to do next, and the id to tell an administrator."""

from django.core.exceptions import DisallowedHost
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

# Where an error is an object, as in management_api/errors.py.
FOR_PROGRAMS = ("/manage/api/", "/config/", "/analytics/")
CODES = {400: "invalid_request", 403: "not_permitted", 404: "not_found"}


def _page(request: HttpRequest, status: int, title: str, text: str) -> HttpResponse:
    if request.path.startswith(FOR_PROGRAMS):
        return _object(request, status, f"{title}. {text}")
    context = {"status": status, "title": title, "text": text, "request_id": getattr(request, "id", "")}
    try:
        page = render_to_string("error.html", context, request if status < 500 else None)
    except DatabaseError:  # who is signed in is not known then
        page = render_to_string("error.html", context)
    return HttpResponse(page, status=status)


def _object(request: HttpRequest, status: int, message: str) -> HttpResponse:
    """As the management API answers where a request does not get that far."""
    error = {"code": CODES.get(status, "internal_error"), "message": message}
    return JsonResponse({"error": error, "request_id": getattr(request, "id", "")}, status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, DisallowedHost):
        text = "An administrator can add the name to ALLOWED_HOSTS, or make it the SITE_URL."
        return _page(request, 400, "This gateway does not know itself by the name in the address", text)
    return _page(request, 400, "That request made no sense", "The address or the form was not what this site expects.")


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _page(
        request, 403, "Not for this account", str(exception) or "You are signed in, but may not do this. "
        "Ask an owner of your tenant or an administrator."
    )  # fmt: skip


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _page(
        request, 404, "There is no such page", "It may have been removed, or belongs to somebody else. "
        "Check the address, or start from the home page."
    )  # fmt: skip


def server_error(request: HttpRequest) -> HttpResponse:
    return _page(
        request, 500, "Something went wrong here", "It is our fault, not yours, and it is in the log. Try again in a "
        "moment; calls to the API are not affected by this page. If it stays, tell an administrator the id below."
    )  # fmt: skip


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return _page(
        request, 403, "The form was too old", "It was made for another session, or cookies are switched off. "
        "Go back, reload the page, and send the form again."
    )  # fmt: skip
