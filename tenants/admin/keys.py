"""API keys: made, shown once, switched, rotated, revoked. Never deleted."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import shown_once
from tenants.administering import (
    AskingAdmin,
    AskingForm,
    apply,
    ask,
    badge,
    moment,
    save_what_changed,
    showing_secret,
)
from tenants.authority import BOUNDS, switched
from tenants.keys import RotatedMeanwhile, issue, rotate_key, rotation_of
from tenants.models import ApiKey, Authority
from tenants.moments import validate_moment

TONES = {"active": "ok", "disabled": "warn", "expired": "off", "revoked": "bad"}


class ApiKeyForm(AskingForm):
    def what_it_does(self) -> str:
        if self.instance.revoked_at or not self.switches_off("enabled"):
            return ""
        return "Its calls are refused, and those that run are cut, until an administrator switches it on again."

    def clean_expires_at(self) -> datetime | None:
        at = self.cleaned_data["expires_at"]
        if at is None or "expires_at" not in self.changed_data:
            return at
        validate_moment(at)  # the model's validator, which runs later: nothing is compared with what is no moment
        if at <= timezone.now():
            raise ValidationError("That moment has passed: the key would never work.")
        return at

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        tenant, user = cleaned.get("tenant"), cleaned.get("user")
        if tenant and tenant.archived_at:
            raise ValidationError({"tenant": "This tenant was deleted. Restore it, or choose another."})
        if tenant and user and not user.memberships.filter(tenant=tenant).exists():
            raise ValidationError({"user": f"{user} is not in {tenant}."})
        return cleaned


class RotationForm(forms.Form):
    OVERLAPS = (("0", "not at all"), ("1", "1 hour"), ("24", "1 day"), ("168", "1 week"))

    overlap = forms.ChoiceField(
        label="The old secret goes on working for",
        choices=OVERLAPS,
        initial="24",
        help_text="Long enough to bring the new one to every app that uses it.",
    )
    version = forms.CharField(required=False, max_length=40, widget=forms.HiddenInput)


class KeyState(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [(state, state.capitalize()) for state in TONES]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        now = timezone.now()
        expired = Q(expires_at__lte=now)
        states = {
            "revoked": Q(revoked_at__isnull=False),
            "expired": Q(revoked_at=None) & expired,
            "disabled": Q(revoked_at=None, enabled=False) & ~expired,
            "active": Q(revoked_at=None, enabled=True) & (Q(expires_at=None) | Q(expires_at__gt=now)),
        }
        return queryset.filter(states[self.value()]) if self.value() in states else queryset


@admin.register(ApiKey)
class ApiKeyAdmin(AskingAdmin):
    """Adding shows the clear text once. Keys are revoked, not deleted."""

    purpose = "What calls are made with."
    form = ApiKeyForm
    change_form_template = "admin/tenants/apikey/change_form.html"
    list_display = ["name", "state", "tenant", "user", "models", "last_use", "expires_at", "shown_prefix"]
    list_filter = [KeyState, "may_manage", "may_use_cloud", "may_be_in_path", "imported"]
    list_select_related = ["tenant", "user", "last_used"]
    search_fields = ["name", "prefix", "tenant__name", "user__username"]
    search_help_text = "Name, prefix (the part between the underscores), tenant or user"
    show_full_result_count = False
    ordering = ["-id"]
    autocomplete_fields = ["tenant", "user"]
    fieldsets = [
        (None, {"fields": ["name", "tenant", "user", "enabled", "expires_at"]}),
        (
            "What it may do",
            {
                "fields": [
                    "models_allowed", "may_infer", "may_list", "may_manage", "may_use_cloud", "may_be_in_path",
                    "max_output_tokens", "latency_class", "weight", "cache_policy",
                ]
            },
        ),
        ("What is known of it", {"fields": ["shown_prefix", "state", "imported", "last_use", *(
            "switched_off_by", "expires_at_by", "models_allowed_by", "max_output_tokens_by", "previous_expires_at",
            "revoked_at", "created_at", "created_by",
        )]}),
    ]  # fmt: skip
    actions = ["enable", "disable", "revoke"]
    KNOWN = (
        "shown_prefix", "state", "imported", "last_use", "switched_off_by", "expires_at_by", "models_allowed_by",
        "max_output_tokens_by", "previous_expires_at", "revoked_at", "created_at", "created_by",
    )  # fmt: skip
    # They cost the operator money, or change models for everybody.
    RIGHTS_OF_SUPERUSERS = ("may_manage", "may_use_cloud")
    # What bounds them, once they were given.
    BOUNDS = ("models_allowed", "expires_at")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("<int:pk>/rotate/", view(self.rotate), name="tenants_apikey_rotate"),
            path("<int:pk>/secret/", view(self.show_secret), name="tenants_apikey_secret"),
            *super().get_urls(),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        fields = self.KNOWN if obj is None else (*self.KNOWN, "tenant", "user")
        if request.user.is_superuser:
            return fields
        bounds = self.BOUNDS if obj is not None and obj.has_rights_of_superusers else ()
        return (*fields, *self.RIGHTS_OF_SUPERUSERS, *bounds)

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        return super().get_fieldsets(request, obj)[: 2 if obj is None else 3]

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def may_rotate(self, request: HttpRequest, key: ApiKey) -> bool:
        """Whoever rotates a key knows its secret, and has its rights (threat T3)."""
        allowed = request.user.is_superuser or not key.has_rights_of_superusers
        return allowed and key.revoked_at is None and not key.imported and self.has_change_permission(request, key)

    # A new secret.

    def save_model(self, request: HttpRequest, obj: ApiKey, form: forms.ModelForm, change: bool) -> None:
        beside = {f"{name}_by": Authority.ADMINISTRATOR for name in BOUNDS if name in form.changed_data}
        if "enabled" in form.changed_data:
            beside["switched_off_by"] = "" if obj.enabled else Authority.ADMINISTRATOR
        for name, value in beside.items():
            setattr(obj, name, value)
        if change:
            save_what_changed(obj, form, *beside)
            return
        obj.created_by = request.user
        # For response_add, which hands it on: not in a message, which would be kept in a cookie.
        request.new_key = issue(obj)  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        return self._hand_out(request, obj, request.new_key.clear_text)  # type: ignore[attr-defined]

    def rotate(self, request: HttpRequest, pk: int) -> HttpResponse:
        key = self._get(request, pk)
        if not self.may_rotate(request, key):
            raise PermissionDenied
        form = RotationForm(request.POST or None, initial={"version": rotation_of(key)})
        if request.method == "POST" and form.is_valid():
            overlap = timedelta(hours=int(form.cleaned_data["overlap"]))
            try:
                made = rotate_key(key, overlap, after=form.cleaned_data["version"])
            except RotatedMeanwhile:
                text = "The key was rotated just now, and not once more: look before you do it again."
                self.message_user(request, text, messages.WARNING)
                return HttpResponseRedirect(reverse("admin:tenants_apikey_secret", args=[key.pk]))
            self.log_change(request, key, f"Rotated; the old secret works for {form.cleaned_data['overlap']} h more.")
            return self._hand_out(request, key, made.clear_text)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "A new secret for this key?",
            "subtitle": str(key),
            "key": key,
            "form": form,
        }
        return TemplateResponse(request, "admin/tenants/apikey/rotate.html", context)

    def show_secret(self, request: HttpRequest, pk: int) -> HttpResponse:
        return showing_secret(self, request, pk, "admin/tenants/apikey/secret.html", "The secret of the key")

    def _hand_out(self, request: HttpRequest, key: ApiKey, clear_text: str) -> HttpResponse:
        page = HttpResponseRedirect(reverse("admin:tenants_apikey_secret", args=[key.pk]))
        return shown_once.keep(request, page, clear_text)

    def _get(self, request: HttpRequest, pk: int) -> ApiKey:
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        key = self.get_object(request, str(pk))
        if key is None:
            raise Http404
        return key

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        key = self.get_object(request, object_id)
        tools = {"may_rotate": key is not None and self.may_rotate(request, key)}
        return super().change_view(request, object_id, form_url, {**tools, **(extra_context or {})})

    # Lists.

    @admin.display(description="prefix", ordering="prefix")
    def shown_prefix(self, key: ApiKey) -> str:
        return key.prefix if key.imported else f"ogw_{key.prefix}_…"

    @admin.display(description="state")
    def state(self, key: ApiKey) -> SafeString:
        return badge(key.state, TONES[key.state])

    @admin.display(description="models")
    def models(self, key: ApiKey) -> str:
        names = key.models_allowed
        return f"{', '.join(names[:2])}{' …' if len(names) > 2 else ''}" if names else "all"

    @admin.display(description="last used", ordering="last_used__at", empty_value="never")
    def last_use(self, key: ApiKey) -> str | None:
        return moment(key.last_used.at) if hasattr(key, "last_used") else None

    # Actions.

    @admin.action(description="Switch on selected keys", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return apply(
            self,
            request,
            queryset.filter(enabled=False),
            "Switched on",
            **switched(on=True, by=Authority.ADMINISTRATOR),
        )

    @admin.action(description="Switch off selected keys…", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        # Also those that their people have switched off: from now on only administrators switch them on.
        queryset = queryset.filter(revoked_at=None).exclude(
            enabled=False, switched_off_by__in=("", Authority.ADMINISTRATOR)
        )
        page = ask(
            self, request, queryset, title="Switch these keys off?", button="Switch off",
            text="Their calls are refused, and those that run are cut, until an administrator switches them on again.",
            detail=_whose, nothing="None of these keys is on.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Switched off", **switched(on=False, by=Authority.ADMINISTRATOR))

    @admin.action(description="Revoke selected keys…", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        queryset = queryset.filter(revoked_at=None)
        page = ask(
            self, request, queryset, title="Revoke these keys for good?", button="Revoke", danger=True,
            text="A revoked key never works again. Calls that are being made with it are cut within a second.",
            detail=_whose, nothing="All of these keys are revoked already.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Revoked", revoked_at=timezone.now())


def _whose(key: ApiKey) -> str:
    used = f", last used {key.last_used.at:%Y-%m-%d %H:%M}" if hasattr(key, "last_used") else ", never used"
    return f"of {key.tenant}{used}"
