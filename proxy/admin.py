"""The Ollama servers, and names and rules of models."""

import re
import ssl
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.http import HttpRequest

from proxy.backend_form import SECRET_WAY_FIELDS, WAY_FIELDS, WayForm
from proxy.backend_url import normalise_backend_url
from proxy.credentials import seal
from proxy.models import Backend, ConfigRevision, DefaultModels, ModelAlias, ModelPolicy
from proxy.resolution import refuse_where_it_leads
from tenants.administering import Archived, ArchivingAdmin, ReadOnlyAdmin

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Ours: they say where a message goes and where it ends.
_RESERVED_HEADERS = {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}


class BackendForm(WayForm):
    credential = forms.CharField(
        required=False,
        max_length=4096,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Value of that header, e.g. Bearer … . Kept encrypted and never shown. Empty: leave it as it is.",
    )
    forget_credential = forms.BooleanField(required=False, help_text="Send no credential any more.")

    def clean_url(self) -> str:
        try:
            url = normalise_backend_url(self.cleaned_data["url"])
            refuse_where_it_leads(url)
        except ValueError as exc:
            raise ValidationError(str(exc)) from None
        return url

    def clean_credential(self) -> str:
        value = self.cleaned_data["credential"]
        if not (value.isascii() and value.isprintable()):
            raise ValidationError("Use printable ASCII characters: it is sent in a header.")
        return value

    def clean_credential_header(self) -> str:
        name = self.cleaned_data["credential_header"].strip()
        if name and (not _HEADER_NAME.fullmatch(name) or name.lower() in _RESERVED_HEADERS):
            raise ValidationError("This cannot be the header of a credential. Write e.g. Authorization.")
        return name

    def clean_ca_certificates(self) -> str:
        pem = self.cleaned_data["ca_certificates"].strip()
        if pem:
            try:
                ssl.create_default_context(cadata=pem)
            except (ssl.SSLError, ValueError):
                raise ValidationError("Paste certificates in PEM form: -----BEGIN CERTIFICATE----- …") from None
        return pem

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        kept = self.instance.credential_encrypted and not cleaned.get("forget_credential")
        if cleaned.get("credential") and cleaned.get("forget_credential"):
            raise ValidationError({"forget_credential": "Give a new credential or forget the old one, not both."})
        if (cleaned.get("credential") or kept) and not cleaned.get("credential_header", True):
            raise ValidationError({"credential_header": "Name the header that the credential is sent in."})
        return cleaned

    def save(self, commit: bool = True) -> Backend:
        if self.cleaned_data["credential"]:
            self.instance.credential_encrypted = seal(self.cleaned_data["credential"])
        elif self.cleaned_data["forget_credential"]:
            self.instance.credential_encrypted = None
        return super().save(commit)


@admin.register(Backend)
class BackendAdmin(ArchivingAdmin):
    """Only superusers add or change: whoever names a backend makes the gateway connect there (threat B14)."""

    form = BackendForm
    what_archiving_does = "it gets no new calls, its usage records stay. It can be restored."
    list_display = ["name", "url", "enabled", "slots", "transport", "set_by_environment", "archived_at"]
    list_filter = [Archived, "enabled", "transport"]
    search_fields = ["name", "url"]
    fieldsets = [
        (None, {"fields": ["name", "url", "enabled", "slots", "context_length", "transport"]}),
        ("TLS and credential", {"fields": [
            "ca_certificates", "credential_header", "has_credential", "credential", "forget_credential",
        ]}),
        ("Way there", {"fields": WAY_FIELDS}),
        ("What is known of it", {"fields": ["set_by_environment", "created_at", "archived_at"]}),
    ]  # fmt: skip
    readonly_fields = ["has_credential", "has_client_key", "set_by_environment", "created_at", "archived_at"]

    def get_readonly_fields(self, request: HttpRequest, obj: Backend | None = None) -> tuple[str, ...]:
        # Written anew at each start, so that an edit would be lost.
        owned = ("name", "url") if obj and obj.set_by_environment else ()
        return (*self.readonly_fields, *owned)

    def get_fieldsets(self, request: HttpRequest, obj: Backend | None = None) -> Any:
        if self.has_change_permission(request, obj) or obj is None:
            return self.fieldsets
        # Who may only look has no form, whose fields these are.
        hidden = {"credential", "forget_credential", *SECRET_WAY_FIELDS}
        return [
            (title, {"fields": [name for name in options["fields"] if name not in hidden]})
            for title, options in self.fieldsets
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    @admin.display(description="credential kept", boolean=True)
    def has_credential(self, backend: Backend) -> bool:
        return bool(backend.credential_encrypted)

    @admin.display(description="key kept", boolean=True)
    def has_client_key(self, backend: Backend) -> bool:
        return bool(backend.client_key_encrypted)


@admin.register(ModelAlias)
class ModelAliasAdmin(admin.ModelAdmin):
    list_display = ["pattern", "stands_for", "enabled"]
    list_filter = ["enabled"]
    search_fields = ["pattern", "model"]
    fields = ["pattern", "model", "enabled"]
    ordering = ["pattern"]


@admin.register(DefaultModels)
class DefaultModelsAdmin(admin.ModelAdmin):
    list_display = ["__str__", "chat_model", "embedding_model"]
    fields = ["chat_model", "embedding_model"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) and not DefaultModels.objects.exists()

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: DefaultModels, form: Any, change: bool) -> None:
        obj.id = 1
        super().save_model(request, obj, form, change)


@admin.register(ModelPolicy)
class ModelPolicyAdmin(admin.ModelAdmin):
    list_display = ["pattern", "num_ctx", "keep_alive", "max_output_tokens"]
    search_fields = ["pattern"]
    fields = ["pattern", "num_ctx", "load_options", "keep_alive", "max_output_tokens"]
    ordering = ["pattern"]


@admin.register(ConfigRevision)
class ConfigRevisionAdmin(ReadOnlyAdmin):
    list_display = ["table", "revision"]
    fields = ["table", "revision"]
    ordering = ["table"]
