"""The live page. What it shows comes over its WebSocket."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from proxy.live.viewers import viewer_of


@require_safe
@login_required
def live(request: HttpRequest) -> HttpResponse:
    return render(request, "live.html", {"viewer": viewer_of(request.user)})
