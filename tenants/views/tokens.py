"""One's own tokens for the management API: the list, making one, its secret (once), its end."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from tenants import rate_limits, shown_once
from tenants.management_tokens import create_token
from tenants.models import ManagementToken
from tenants.rate_limits import limited
from tenants.requests import PersonRequest
from tenants.token_forms import TokenForm


def urls() -> list[URLPattern]:
    return [
        path("tokens/", tokens, name="tokens"),
        path("tokens/new/", new, name="token_new"),
        path("tokens/<str:prefix>/secret/", secret, name="token_secret"),
        path("tokens/<str:prefix>/revoke/", revoke, name="token_revoke"),
    ]


@login_required
@require_safe
def tokens(request: PersonRequest) -> HttpResponse:
    own = ManagementToken.objects.filter(user=request.user, revoked_at=None).select_related("tenant", "last_used")
    return render(request, "tenants/tokens/list.html", {"tokens": own.order_by("-created_at")})


@login_required
@limited(rate_limits.NEW_KEY, rate_limits.user)
def new(request: PersonRequest) -> HttpResponse:
    form = TokenForm(request.POST or None, user=request.user)
    if request.method == "POST" and form.is_valid():
        made = create_token(request.user, created_by=request.user, **form.columns())
        return shown_once.keep(request, redirect("token_secret", made.row.prefix), made.clear_text)
    return render(request, "tenants/tokens/form.html", {"form": form})


@login_required
@require_safe
def secret(request: PersonRequest, prefix: str) -> HttpResponse:
    """The clear text, for the first time and the last."""
    token = _own(request, prefix)
    clear_text = shown_once.take(request)
    if clear_text is None or f"_{token.prefix}_" not in clear_text:
        messages.info(request, "The token was shown before and is not kept. If it is lost, revoke it and make another.")
        return redirect("tokens")
    response = render(request, "tenants/tokens/secret.html", {"token": token, "clear_text": clear_text})
    response.headers["Referrer-Policy"] = "strict-origin"
    return shown_once.forget_cookie(response)


@login_required
def revoke(request: PersonRequest, prefix: str) -> HttpResponse:
    token = _own(request, prefix)
    if request.method == "POST":
        token.revoke()
        messages.success(request, f"“{token.name}” is revoked.")
        return redirect("tokens")
    return render(request, "tenants/tokens/revoke.html", {"token": token})


def _own(request: PersonRequest, prefix: str) -> ManagementToken:
    """Foreign and missing ones answer alike (T1)."""
    return get_object_or_404(
        ManagementToken.objects.filter(user=request.user).select_related("last_used"), prefix=prefix
    )
