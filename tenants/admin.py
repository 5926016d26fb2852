"""Tenants, people, keys and rules."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import model_ngettext
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from tenants import money
from tenants.administering import Archived, ArchivingAdmin
from tenants.announcements import rules_changed
from tenants.keys import issue
from tenants.models import ApiKey, IPRule, Limit, Membership, Tenant, User


class MembershipInline(admin.TabularInline):
    model = Membership
    autocomplete_fields = ["user", "tenant"]
    extra = 0


@admin.register(Tenant)
class TenantAdmin(ArchivingAdmin):
    what_archiving_does = "its keys stop working at once, its usage records stay. It can be restored."
    list_display = ["name", "enabled", "created_at", "archived_at"]
    list_filter = [Archived, "enabled"]
    search_fields = ["name"]
    fields = ["name", "enabled", "created_at", "archived_at"]
    readonly_fields = ["created_at", "archived_at"]
    inlines = [MembershipInline]


@admin.register(User)
class UserAdmin(DjangoUserAdmin):
    """Users are switched off, not deleted. Only superusers hand out rights, and touch superusers (threat T3)."""

    list_display = ["username", "email", "is_active", "is_staff", "is_superuser", "last_login"]
    readonly_fields = ["last_login", "date_joined"]
    inlines = [MembershipInline]
    actions = ["switch_off", "switch_on"]

    RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_superuser else fields + self.RIGHTS

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False

    @admin.action(description="Switch off selected users: their keys stop working at once", permissions=["change"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet) -> None:
        self._switch(request, queryset.exclude(pk=request.user.pk), on=False)

    @admin.action(description="Switch on selected users", permissions=["change"])
    def switch_on(self, request: HttpRequest, queryset: QuerySet) -> None:
        self._switch(request, queryset, on=True)

    def _switch(self, request: HttpRequest, users: QuerySet, *, on: bool) -> None:
        if not request.user.is_superuser:
            users = users.filter(is_superuser=False)
        count = users.update(is_active=on)
        rules_changed()
        self.message_user(request, f"Switched {'on' if on else 'off'}: {count}.", messages.SUCCESS)


class ApiKeyForm(forms.ModelForm):
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        tenant, user = cleaned.get("tenant"), cleaned.get("user")
        if tenant and tenant.archived_at:
            raise ValidationError({"tenant": "This tenant was deleted. Restore it, or choose another."})
        if tenant and user and not user.memberships.filter(tenant=tenant).exists():
            raise ValidationError({"user": f"{user} is not in {tenant}."})
        return cleaned


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    """Adding shows the clear text once. Keys are revoked, not deleted."""

    form = ApiKeyForm
    list_display = ["name", "shown_prefix", "tenant", "user", "state", "expires_at", "last_use", "created_at"]
    list_filter = ["enabled", ("revoked_at", admin.EmptyFieldListFilter), "imported", "may_manage"]
    list_select_related = ["tenant", "user", "last_used"]
    search_fields = ["name", "prefix", "tenant__name", "user__username"]
    search_help_text = "Name, prefix (the part between the underscores), tenant or user"
    autocomplete_fields = ["tenant", "user"]
    fieldsets = [
        (None, {"fields": ["name", "tenant", "user", "enabled", "expires_at"]}),
        (
            "What it may do",
            {
                "fields": [
                    "models_allowed", "may_infer", "may_list", "may_manage", "may_use_cloud", "may_be_in_path",
                    "max_output_tokens",
                ]
            },
        ),
        ("What is known of it", {"fields": ["shown_prefix", "state", "imported", "last_use", *(
            "previous_expires_at", "revoked_at", "created_at", "created_by",
        )]}),
    ]  # fmt: skip
    actions = ["enable", "disable", "revoke"]
    KNOWN = (
        "shown_prefix", "state", "imported", "last_use", "previous_expires_at", "revoked_at", "created_at",
        "created_by",
    )  # fmt: skip
    # They cost the operator money, or change models for everybody.
    RIGHTS_OF_SUPERUSERS = ("may_manage", "may_use_cloud")

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        fields = self.KNOWN if obj is None else (*self.KNOWN, "tenant", "user")
        return fields if request.user.is_superuser else fields + self.RIGHTS_OF_SUPERUSERS

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        return super().get_fieldsets(request, obj)[: 2 if obj is None else 3]

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: forms.ModelForm, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        obj.created_by = request.user
        # For response_add, which shows it: not in a message, which would be kept in a cookie.
        request.new_key = issue(obj)  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "The new key",
            "key": obj,
            "clear_text": request.new_key.clear_text,  # type: ignore[attr-defined]
        }
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return TemplateResponse(request, "admin/tenants/apikey/issued.html", context, headers=headers)

    @admin.display(description="prefix", ordering="prefix")
    def shown_prefix(self, key: ApiKey) -> str:
        return key.prefix if key.imported else f"ogw_{key.prefix}_…"

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        return key.state

    @admin.display(description="last used", ordering="last_used__at")
    def last_use(self, key: ApiKey) -> Any:
        return key.last_used.at if hasattr(key, "last_used") else None

    @admin.action(description="Enable selected keys", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet) -> None:
        self.message_user(request, f"Enabled: {queryset.update(enabled=True)}.", messages.SUCCESS)

    @admin.action(description="Disable selected keys", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet) -> None:
        count = queryset.update(enabled=False)
        rules_changed()
        self.message_user(request, f"Disabled: {count}.", messages.SUCCESS)

    @admin.action(description="Revoke selected keys…", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        keys = list(queryset.filter(revoked_at=None))
        if request.POST.get("confirmed"):
            for key in keys:
                self.log_change(request, key, "Revoked.")
            count = queryset.revoke()
            self.message_user(request, f"Revoked {count} {model_ngettext(self.opts, count)}.", messages.SUCCESS)
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Revoke these keys?",
            "keys": keys,
            "selected": queryset.values_list("pk", flat=True),
            "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/tenants/apikey/revoke_confirmation.html", context)


@admin.register(IPRule)
class IPRuleAdmin(admin.ModelAdmin):
    list_display = ["cidr", "action", "tenant", "key", "acts_as", "expires_at", "note"]
    list_filter = ["action", ("tenant", admin.EmptyFieldListFilter), ("acts_as", admin.EmptyFieldListFilter)]
    list_select_related = ["tenant", "key", "acts_as"]
    search_fields = ["cidr", "note", "tenant__name", "key__name", "key__prefix"]
    autocomplete_fields = ["tenant", "key", "acts_as"]
    fields = ["cidr", "action", "tenant", "key", "acts_as", "expires_at", "note"]


class LimitForm(forms.ModelForm):
    """The amount of a cost is written in units of the currency, as at the shell."""

    amount = forms.CharField(
        max_length=40, help_text="A whole number; a cost in units of the currency, e.g. 25.50. 0 refuses everything."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk and self.instance.metric == Limit.Metric.COST:
            self.initial["amount"] = money.shown(self.instance.amount)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        text, metric = cleaned.get("amount"), cleaned.get("metric")
        if text is None:
            return cleaned
        try:
            amount = money.to_nano(text)
        except ValueError as exc:
            raise ValidationError({"amount": str(exc)}) from None
        if metric != Limit.Metric.COST:
            amount, decimals = divmod(amount, money.ONE)
            if decimals:
                raise ValidationError({"amount": "Write a whole number."})
        return {**cleaned, "amount": amount}


@admin.register(Limit)
class LimitAdmin(admin.ModelAdmin):
    form = LimitForm
    list_display = ["scope", "subject", "metric", "shown_amount", "window", "window_seconds", "model", "mode"]
    list_filter = ["scope", "metric", "mode"]
    list_select_related = ["tenant", "user", "key"]
    search_fields = ["tenant__name", "user__username", "key__name", "key__prefix", "model"]
    autocomplete_fields = ["tenant", "user", "key"]
    fields = ["scope", "tenant", "user", "key", "metric", "amount", "window", "window_seconds", "model", "mode"]

    @admin.display(description="amount", ordering="amount")
    def shown_amount(self, limit: Limit) -> str:
        return money.shown(limit.amount) if limit.metric == Limit.Metric.COST else str(limit.amount)
