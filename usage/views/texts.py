"""Stored prompts and answers: of one request, and searched. Shown after a POST only, because a look is noted."""

from datetime import datetime
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_http_methods, require_POST

from tenants.moments import validate_moment
from tenants.requests import PersonRequest
from usage import texts
from usage.views.scoped import record_scopes

MOST_CHARACTERS = 200


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def stored_texts(request: PersonRequest) -> HttpResponse:
    """The form; sent, what it finds."""
    readable = texts.readable_by(request.user, record_scopes(request.user))
    context = {"reads_others": request.user.has_perm(texts.PERMISSION), "days": texts.KEPT.days, "asked": False}
    if request.method == "POST":
        wanted = request.POST.get("q", "").replace("\x00", "")[:MOST_CHARACTERS].strip()
        found = texts.shown(texts.found(readable, wanted, _moment(request.POST.get("before", "")))[: texts.PAGE])
        older = found[-1].at.isoformat() if len(found) == texts.PAGE else ""
        context |= {"asked": True, "found": found, "wanted": wanted, "older": older}
    return render(request, "usage/texts.html", context)


@login_required
@require_POST
def text_of_request(request: PersonRequest, pk: UUID) -> HttpResponse:
    found = texts.shown(texts.readable_by(request.user, record_scopes(request.user)).filter(pk=pk))
    if not found:
        raise Http404
    return render(request, "usage/text.html", {"text": found[0]})


def _moment(value: str) -> datetime | None:
    """As the page wrote it; anything else is no bound."""
    try:
        at = parse_datetime(value)
        if at is None or at.tzinfo is None:
            return None
        validate_moment(at)
    except (ValueError, ValidationError):
        return None
    return at
