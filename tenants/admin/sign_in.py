"""Second factors, addresses, accounts elsewhere, groups: what may be looked at and taken away, and never a secret.

allauth's own pages of these tables show the secrets of second factors and tokens, and who may edit an address may take
over whose it is (threat T3). The site keeps what is registered first (gateway_site/admin_site.py).
"""

from typing import Any

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.models import Group
from django.db.models import Model
from django.http import HttpRequest

from tenants.administering import ReadOnlyAdmin


class ForSuperusers:
    """Of an admin: others do not even see it, whatever permissions they have."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser and super().has_add_permission(request)  # type: ignore[misc]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser and super().has_change_permission(request, obj)  # type: ignore[misc]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser


@admin.register(Authenticator)
class AuthenticatorAdmin(ForSuperusers, ReadOnlyAdmin):
    purpose = "Second factors. Delete one whose owner has lost it."
    actions = ["delete_selected"]
    list_display = ["user", "type", "created_at", "last_used_at"]
    list_filter = ["type"]
    list_select_related = ["user"]
    search_fields = ["user__username", "user__email"]
    search_help_text = "User or address"
    ordering = ["-id"]
    # Without `data`, which is the secret.
    fields = ["user", "type", "created_at", "last_used_at"]


@admin.register(SocialAccount)
class SocialAccountAdmin(ForSuperusers, ReadOnlyAdmin):
    purpose = "Accounts elsewhere that people sign in with."
    actions = ["delete_selected"]
    list_display = ["user", "provider", "uid", "date_joined", "last_login"]
    list_filter = ["provider"]
    list_select_related = ["user"]
    search_fields = ["user__username", "user__email", "uid"]
    search_help_text = "User, address or id at the provider"
    ordering = ["-id"]
    fields = ["user", "provider", "uid", "date_joined", "last_login"]


@admin.register(EmailAddress)
class EmailAddressAdmin(ForSuperusers, admin.ModelAdmin):
    purpose = "Addresses that people sign in with, and get links to new passwords at."
    list_display = ["email", "user", "primary", "verified"]
    list_filter = ["verified", "primary"]
    list_select_related = ["user"]
    search_fields = ["email", "user__username"]
    search_help_text = "Address or user"
    autocomplete_fields = ["user"]
    fields = ["user", "email", "verified", "primary"]
    ordering = ["email"]


@admin.register(Group)
class GroupAdmin(ForSuperusers, DjangoGroupAdmin):
    purpose = "Permissions that several people of the staff have."

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        if "permissions" in form.base_fields:
            form.base_fields["permissions"].help_text = "What a superuser alone may do stays so whatever is given here."
        return form
