"""Sign-in by the organisation's OpenID Connect provider. It says who somebody is, we say whether they may come in."""

import logging
from typing import Any

from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialApp
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView, OAuth2LoginView
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from requests import RequestException

from tenants import invitations
from tenants.models import Invitation, Membership, Role, Tenant, User

logger = logging.getLogger(__name__)


class OwnAddressAdapter(OpenIDConnectOAuth2Adapter):
    """Comes back to SITE_URL, whatever the Host header says (N4)."""

    def get_callback_url(self, request: HttpRequest, app: Any) -> str:
        return settings.SITE_URL + reverse("openid_connect_callback", kwargs={"provider_id": self.provider_id})


def begin(request: HttpRequest, provider_id: str) -> HttpResponse:
    return _answer(OAuth2LoginView, request, provider_id)


def come_back(request: HttpRequest, provider_id: str) -> HttpResponse:
    return _answer(OAuth2CallbackView, request, provider_id)


def _answer(view: type, request: HttpRequest, provider_id: str) -> HttpResponse:
    try:
        return view.adapter_view(OwnAddressAdapter(request, provider_id))(request)
    except SocialApp.DoesNotExist:
        raise Http404 from None
    except RequestException as exc:
        logger.warning("%s does not answer: %s", settings.OIDC_ISSUER, type(exc).__name__)
        messages.error(request, f"{settings.OIDC_NAME} does not answer. Try again later, or sign in with a password.")
        return redirect("account_login")


class SocialAccountAdapter(DefaultSocialAccountAdapter):
    def get_provider(self, *args: Any, **kwargs: Any) -> Any:
        provider = super().get_provider(*args, **kwargs)
        provider.oauth2_adapter_class = OwnAddressAdapter
        return provider

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        """New people need an invitation to the address that the provider vouches for, or OIDC_AUTO_TENANT."""
        addresses = [address.email for address in sociallogin.email_addresses]
        if _is_taken(addresses):
            messages.error(
                request,
                "There is an account with this e-mail address. Sign in with its password, then connect "
                f"{settings.OIDC_NAME} under Account and security.",
            )
            raise ImmediateHttpResponse(redirect("account_login"))
        return bool(_invitation(sociallogin) or settings.OIDC_AUTO_TENANT)

    def save_user(self, request: HttpRequest, sociallogin: Any, form: Any = None) -> User:
        try:
            with transaction.atomic():
                return self._save_in_tenant(request, sociallogin, form)
        except invitations.NotOpen:
            messages.error(request, "The invitation was used or withdrawn at this moment. Ask for another invitation.")
            raise ImmediateHttpResponse(redirect("account_login")) from None

    def _save_in_tenant(self, request: HttpRequest, sociallogin: Any, form: Any) -> User:
        invitation = _invitation(sociallogin)
        user: User = super().save_user(request, sociallogin, form)
        if invitation is not None:
            invitations.accept(invitation, user)
        elif settings.OIDC_AUTO_TENANT:
            tenant, _ = Tenant.objects.get_or_create(name=settings.OIDC_AUTO_TENANT)
            if tenant.archived_at is None:
                Membership.objects.create(tenant=tenant, user=user, role=Role.MEMBER)
        return user


def _is_taken(addresses: list[str]) -> bool:
    taken = Q()
    for address in addresses:
        taken |= Q(email__iexact=address)
    return bool(taken) and (User.objects.filter(taken).exists() or EmailAddress.objects.filter(taken).exists())


def _invitation(sociallogin: Any) -> Invitation | None:
    for address in sociallogin.email_addresses:
        if address.verified and (found := Invitation.objects.open().filter(email__iexact=address.email).first()):
            return found
    return None
