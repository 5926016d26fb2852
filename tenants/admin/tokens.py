"""Tokens of the management API: made, shown once, revoked. Never changed, never deleted."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import shown_once
from tenants.admin.sign_in import ForSuperusers
from tenants.administering import apply, ask, badge, moment, showing_secret
from tenants.management_tokens import issue
from tenants.models import ManagementToken
from tenants.models.management_tokens import SCOPES

TONES = {"active": "ok", "expired": "off", "revoked": "bad"}


class ManagementTokenForm(forms.ModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(name, f"{name}: {text}") for name, text in SCOPES.items()],
        widget=forms.CheckboxSelectMultiple,
        initial=["read"],
    )

    def clean_expires_at(self) -> Any:
        at = self.cleaned_data["expires_at"]
        if at is not None and at <= timezone.now():
            raise ValidationError("That moment has passed: the token would never work.")
        return at


@admin.register(ManagementToken)
class ManagementTokenAdmin(ForSuperusers, admin.ModelAdmin):
    """For superusers: whoever makes a token has the rights of its user."""

    purpose = "What programs manage the gateway with, by its API."
    form = ManagementTokenForm
    list_display = ["name", "shown_prefix", "user", "state", "shown_scopes", "tenant", "last_use", "expires_at"]
    list_select_related = ["user", "tenant", "last_used"]
    search_fields = ["name", "prefix", "user__username"]
    search_help_text = "Name, prefix (the part between the underscores) or user"
    ordering = ["-id"]
    autocomplete_fields = ["user", "tenant"]
    fields = ["name", "user", "scopes", "tenant", "expires_at"]
    actions = ["revoke"]

    def get_urls(self) -> list[URLPattern]:
        own = path(
            "<int:pk>/secret/", self.admin_site.admin_view(self.show_secret), name="tenants_managementtoken_secret"
        )
        return [own, *super().get_urls()]

    def get_fields(self, request: HttpRequest, obj: ManagementToken | None = None) -> list[str]:
        if obj is None:
            return self.fields
        return ["name", "shown_prefix", "user", "state", "shown_scopes", "tenant", "last_use", "expires_at",
                "revoked_at", "created_at", "created_by"]  # fmt: skip

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def save_model(self, request: HttpRequest, obj: ManagementToken, form: forms.ModelForm, change: bool) -> None:
        obj.created_by = request.user
        # For response_add, which hands it on: not in a message, which would be kept in a cookie.
        request.new_token = issue(obj)  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: ManagementToken, post_url_continue: str | None = None
    ) -> HttpResponse:
        page = HttpResponseRedirect(reverse("admin:tenants_managementtoken_secret", args=[obj.pk]))
        return shown_once.keep(request, page, request.new_token.clear_text)  # type: ignore[attr-defined]

    def show_secret(self, request: HttpRequest, pk: int) -> HttpResponse:
        return showing_secret(self, request, pk, "admin/tenants/managementtoken/secret.html", "The secret of the token")

    @admin.display(description="prefix", ordering="prefix")
    def shown_prefix(self, token: ManagementToken) -> str:
        return f"ogm_{token.prefix}_…"

    @admin.display(description="state")
    def state(self, token: ManagementToken) -> SafeString:
        return badge(token.state, TONES[token.state])

    @admin.display(description="scopes")
    def shown_scopes(self, token: ManagementToken) -> str:
        return ", ".join(token.scopes)

    @admin.display(description="last used", ordering="last_used__at", empty_value="never")
    def last_use(self, token: ManagementToken) -> str | None:
        return moment(token.last_used.at) if hasattr(token, "last_used") else None

    @admin.action(description="Revoke selected tokens…", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = queryset.filter(revoked_at=None)
        page = ask(
            self, request, queryset, title="Revoke these tokens for good?", button="Revoke", danger=True,
            text="Programs that use them are refused from now on.", detail=lambda token: f"of {token.user}",
            nothing="All of these tokens are revoked already.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Revoked", revoked_at=timezone.now())
