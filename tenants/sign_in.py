"""How people come in: allauth's views behind our limits, and what of allauth is decided here."""

from typing import Any
from urllib.parse import urlsplit

from allauth.account import views as account
from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.manage_email import sync_user_email_address
from allauth.mfa.base import views as mfa
from allauth.mfa.webauthn import views as webauthn
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode

from tenants import oidc, rate_limits
from tenants.rate_limits import limited


def is_own_url(url: str) -> bool:
    """Whether one may be sent there after signing in: a path of this site, or its address from SITE_URL (T12)."""
    return url_has_allowed_host_and_scheme(
        url, allowed_hosts={urlsplit(settings.SITE_URL).netloc}, require_https=settings.HTTPS
    )


class AccountAdapter(DefaultAccountAdapter):
    """Nobody signs up by themselves; links in mails are built from SITE_URL, never from a Host header (N4)."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def is_safe_url(self, url: str) -> bool:
        return is_own_url(url)

    def login(self, request: HttpRequest, user: Any) -> None:
        super().login(request, user)
        # In allauth's own table, too; otherwise its page of addresses writes it there when it is looked at (T7).
        sync_user_email_address(user)

    def get_client_ip(self, request: HttpRequest) -> str:
        return rate_limits.client_address(request)

    def get_reset_password_from_key_url(self, key: str) -> str:
        # The form of allauth: uid in base 36, a dash, the token.
        uid, _, token = key.partition("-")
        return settings.SITE_URL + reverse("account_reset_password_from_key", kwargs={"uidb36": uid, "key": token})

    def get_email_confirmation_url(self, request: HttpRequest, emailconfirmation: Any) -> str:
        return settings.SITE_URL + reverse("account_confirm_email", args=[emailconfirmation.key])

    def format_email_subject(self, subject: str) -> str:
        return subject

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        site = {"name": "Ollama Gateway", "domain": urlsplit(settings.SITE_URL).netloc}
        super().send_mail(template_prefix, email, {**context, "current_site": site})


def admin_login(request: HttpRequest) -> HttpResponse:
    """The admin's door is everybody's."""
    wanted = request.GET.get(REDIRECT_FIELD_NAME, "")
    wanted = wanted if is_own_url(wanted) else reverse("admin:index")
    if not request.user.is_authenticated:
        return redirect(f"{reverse('account_login')}?{urlencode({REDIRECT_FIELD_NAME: wanted})}")
    if request.user.is_staff:
        return redirect(wanted)
    raise PermissionDenied("The admin is for staff. Ask an administrator to make your account one of staff.")


by_login = limited(rate_limits.SIGN_IN, rate_limits.address_and_name)
by_second_factor = limited(rate_limits.SECOND_FACTOR, rate_limits.address_and_pending_user)
by_password = limited(rate_limits.SIGN_IN, rate_limits.user)
by_mail_sent = limited(rate_limits.MAIL, rate_limits.user)

# Before allauth's own: the first pattern that fits answers.
urlpatterns: list[URLPattern] = [
    path("account/login/", by_login(account.login)),
    path("account/reauthenticate/", by_password(account.reauthenticate)),
    path("account/password/change/", by_password(account.password_change)),
    path(
        "account/password/reset/",
        limited(rate_limits.PASSWORD_RESET, rate_limits.address_and_name)(account.password_reset),
    ),
    path("account/email/", by_mail_sent(account.email)),
    path("account/2fa/authenticate/", by_second_factor(mfa.authenticate)),
    path("account/2fa/reauthenticate/", by_second_factor(mfa.reauthenticate)),
    path("account/2fa/webauthn/login/", limited(rate_limits.SIGN_IN, rate_limits.address)(webauthn.login_webauthn)),
    path("account/oidc/<str:provider_id>/login/", limited(rate_limits.SIGN_IN, rate_limits.address)(oidc.begin)),
    path("account/oidc/<str:provider_id>/login/callback/", oidc.come_back),
    path("account/2fa/webauthn/reauthenticate/", by_second_factor(webauthn.reauthenticate_webauthn)),
]
