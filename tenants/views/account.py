"""One's own account: the way to all that allauth has pages for."""

from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from tenants.requests import PersonRequest


def urls() -> list[URLPattern]:
    return [path("account/", account, name="account")]


@login_required
@require_safe
def account(request: PersonRequest) -> HttpResponse:
    factors = Authenticator.objects.filter(user=request.user)
    context = {
        "memberships": request.user.memberships.filter(tenant__archived_at=None).select_related("tenant"),
        "has_app": factors.filter(type=Authenticator.Type.TOTP).exists(),
        "passkeys": factors.filter(type=Authenticator.Type.WEBAUTHN).count(),
        "has_codes": factors.filter(type=Authenticator.Type.RECOVERY_CODES).exists(),
        "oidc_name": settings.OIDC_NAME if settings.OIDC_ISSUER else "",
        "is_connected": SocialAccount.objects.filter(user=request.user).exists(),
    }
    return render(request, "tenants/account.html", context)
