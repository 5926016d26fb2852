"""Sign-in by the organisation's OpenID Connect provider. It says who somebody is, we say whether they may come in."""

from typing import Any

from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest
from django.shortcuts import redirect

from tenants import invitations
from tenants.models import Invitation, Membership, Role, Tenant, User


class SocialAccountAdapter(DefaultSocialAccountAdapter):
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
        invitation = _invitation(sociallogin)
        user = super().save_user(request, sociallogin, form)
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
