"""The live page. What it shows comes over its WebSocket."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from proxy.live.pictures import Viewer
from proxy.live.viewers import viewer_of


@require_safe
@login_required
def live(request: HttpRequest) -> HttpResponse:
    viewer = viewer_of(request.user)
    return render(request, "live.html", {"viewer": viewer, "whose": _whose(viewer)})


def _whose(viewer: Viewer) -> str:
    """The calls that somebody sees, in words."""
    if viewer.sees_all:
        return "The calls of all tenants"
    if not viewer.sees:
        return "Your calls"
    tenants = "tenant" if len(viewer.sees) == 1 else "tenants"
    return f"The calls of your {tenants}" + (", and your own elsewhere" if viewer.belongs_to - viewer.sees else "")
