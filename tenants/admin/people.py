"""Tenants, users, who is in which tenant, and who was asked to come."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import UserChangeForm
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import invitations, memberships, shown_once
from tenants.administering import (
    Archived,
    ArchivingAdmin,
    AskingAdmin,
    AskingForm,
    ReadOnlyAdmin,
    apply,
    ask,
    badge,
    counted,
    plural,
    save_what_changed,
    showing_secret,
    to_list,
)
from tenants.models import ApiKey, Invitation, Membership, Tenant, User


class MembershipForm(forms.ModelForm):
    def validate_unique(self) -> None:
        """Twice the same person is told of. Django leaves out constraints on the row that an inline stands on."""
        super().validate_unique()
        try:
            self.instance.validate_constraints(exclude=self._get_validation_exclusions())
        except ValidationError as exc:
            self._update_errors(exc)


class MembershipInline(admin.TabularInline):
    model = Membership
    form = MembershipForm
    autocomplete_fields = ["user", "tenant"]
    extra = 0


def say_keys_off(model_admin: admin.ModelAdmin, request: HttpRequest, settled: memberships.Settled) -> None:
    if settled.keys_off:
        text = f"Keys of who has none here any more were switched off: {settled.keys_off}."
        model_admin.message_user(request, text, messages.WARNING)


class WithMemberships(AskingAdmin):
    """A form with memberships below it. `side`: what its rows are to a membership."""

    side: str

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            save_what_changed(obj, form)
        else:
            super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        with memberships.settling_keys(Membership.objects.filter(**{self.side: form.instance})) as settled:
            super().save_related(request, form, formsets, change)
        say_keys_off(self, request, settled)


class TenantForm(AskingForm):
    def what_it_does(self) -> str:
        if self.instance.archived_at or not self.switches_off("enabled"):
            return ""
        keys = plural(self.instance.keys.usable().count(), "usable key")
        return f"All its keys stop working at once ({keys}), and calls that run are cut."


@admin.register(Tenant)
class TenantAdmin(WithMemberships, ArchivingAdmin):
    form = TenantForm
    side = "tenant"
    purpose = "Teams or customers: what keys belong to, and what limits and bills are about."
    list_display = ["name", "state", "people", "usable_keys", "created_at"]
    list_filter = [Archived, "enabled"]
    search_fields = ["name"]
    search_help_text = "Name"
    fields = [
        "name", "enabled", "latency_class", "weight", "cache_policy", "cache_scope", "keeps_texts", "created_at",
        "archived_at",
    ]  # fmt: skip
    readonly_fields = ["created_at", "archived_at"]
    inlines = [MembershipInline]
    actions = ["disable", "enable", "restore"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return (
            super()
            .get_queryset(request)
            .annotate(
                people_count=counted(Membership.objects, "tenant"),
                keys_count=counted(ApiKey.objects.usable(), "tenant"),
            )
        )

    def what_archiving_does_to(self, tenant: Tenant) -> list[str]:
        keys = tenant.keys.usable().count()
        return [
            f"{plural(keys, 'key')} that work now stop working at once; their running calls are cut.",
            f"{plural(tenant.memberships.count(), 'person', 'people')} lose access to its pages.",
            "Its usage records stay. It can be restored.",
        ]

    @admin.display(description="state", ordering="enabled")
    def state(self, tenant: Tenant) -> SafeString:
        if tenant.archived_at:
            return badge("deleted", "off")
        return badge("on", "ok") if tenant.enabled else badge("switched off", "bad")

    @admin.display(description="people", ordering="people_count")
    def people(self, tenant: Any) -> int:
        return tenant.people_count

    @admin.display(description="usable keys", ordering="keys_count")
    def usable_keys(self, tenant: Any) -> int:
        return tenant.keys_count

    @admin.action(description="Switch off selected tenants…", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        page = ask(
            self, request, queryset.filter(enabled=True, archived_at=None),
            title="Switch these tenants off?", button="Switch off",
            text="All their keys stop working at once, and calls that run are cut. Switching on brings them back.",
            detail=lambda tenant: plural(tenant.keys_count, "usable key"), nothing="None of these tenants is on.",
        )  # fmt: skip
        return page or apply(self, request, queryset.filter(enabled=True), "Switched off", enabled=False)

    @admin.action(description="Switch on selected tenants", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return apply(self, request, queryset.filter(enabled=False), "Switched on", enabled=True)


class UserForm(AskingForm, UserChangeForm):
    def what_it_does(self) -> str:
        if not self.switches_off("is_active"):
            return ""
        keys = plural(self.instance.keys.usable().count(), "usable key")
        return f"They are signed out and their keys stop working at once ({keys}); calls that run are cut."


@admin.register(User)
class UserAdmin(WithMemberships, DjangoUserAdmin):
    """Users are switched off, not deleted. Only superusers hand out rights, and touch other staff (threat T3)."""

    form = UserForm
    side = "user"
    purpose = "People who can sign in."
    list_display = ["username", "email", "state", "rights", "tenants_shown", "last_login"]
    list_filter = ["is_active", "is_staff", "is_superuser"]
    search_help_text = "User name, name or address"
    ordering = ["username"]
    readonly_fields = ["last_login", "date_joined"]
    inlines = [MembershipInline]
    actions = ["switch_off", "switch_on"]

    RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        queryset = super().get_queryset(request).prefetch_related("memberships__tenant")
        return queryset.annotate(keys_count=counted(ApiKey.objects.usable(), "user"))

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_superuser else fields + self.RIGHTS

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        # Whoever may set the password of other staff has the rights of all of them.
        privileged = obj is not None and (obj.is_superuser or (obj.is_staff and obj.pk != request.user.pk))
        return super().has_change_permission(request, obj) and (request.user.is_superuser or not privileged)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False

    @admin.display(description="state", ordering="is_active")
    def state(self, user: User) -> SafeString:
        return badge("on", "ok") if user.is_active else badge("switched off", "bad")

    @admin.display(description="rights")
    def rights(self, user: User) -> str:
        return "superuser" if user.is_superuser else "staff" if user.is_staff else ""

    @admin.display(description="tenants")
    def tenants_shown(self, user: User) -> str:
        return ", ".join(f"{membership.tenant} ({membership.role})" for membership in user.memberships.all())

    @admin.action(description="Switch off selected users…", permissions=["change"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = self._touchable(request, queryset.exclude(pk=request.user.pk)).filter(is_active=True)
        page = ask(
            self, request, queryset, title="Switch these users off?", button="Switch off",
            text="They are signed out and their keys stop working at once; calls that run are cut.",
            detail=lambda user: plural(user.keys_count, "usable key"),
            nothing="None of these users is on, or you may not switch them off. Nobody can switch off themselves.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Switched off", is_active=False)

    @admin.action(description="Switch on selected users", permissions=["change"])
    def switch_on(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = self._touchable(request, queryset).filter(is_active=False)
        return apply(self, request, queryset, "Switched on", is_active=True)

    def _touchable(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if request.user.is_superuser:
            return queryset
        return queryset.filter(Q(is_staff=False) | Q(pk=request.user.pk), is_superuser=False)


@admin.register(Membership)
class MembershipAdmin(admin.ModelAdmin):
    purpose = "Who is in which tenant, and as what."
    list_display = ["user", "tenant", "role"]
    list_filter = ["role"]
    list_select_related = ["user", "tenant"]
    search_fields = ["user__username", "user__email", "tenant__name"]
    search_help_text = "User, address or tenant"
    autocomplete_fields = ["user", "tenant"]
    fields = ["tenant", "user", "role"]
    ordering = ["tenant__name", "user__username"]

    def save_model(self, request: HttpRequest, obj: Membership, form: Any, change: bool) -> None:
        with memberships.settling_keys(Membership.objects.filter(pk=obj.pk)) as settled:
            super().save_model(request, obj, form, change)
        say_keys_off(self, request, settled)

    def delete_model(self, request: HttpRequest, obj: Membership) -> None:
        self.delete_queryset(request, Membership.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet) -> None:
        rows = Membership.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
        with memberships.settling_keys(rows) as settled:
            for row in rows:  # one by one: what is put out leaves an entry each
                row.delete()
        say_keys_off(self, request, settled)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        named, *others = super().get_deleted_objects(objs, request)
        keys = sum(memberships.keys_of(row).filter(enabled=True, revoked_at=None).count() for row in objs)
        return [*([f"{plural(keys, 'key')} of theirs are switched off."] if keys else []), *named], *others


class InvitationState(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("open", "Open"), ("accepted", "Accepted")]

    def queryset(self, request: HttpRequest, queryset: Any) -> QuerySet:
        if self.value() == "open":
            return queryset.open()
        return queryset.filter(accepted_at__isnull=False) if self.value() == "accepted" else queryset


@admin.register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    """The link is sent, or shown once. An invitation is withdrawn, not edited."""

    purpose = "Who was asked to come, and has not yet or has."
    list_display = ["email", "tenant", "role", "state", "invited_by", "created_at", "expires_at"]
    list_filter = [InvitationState, "role"]
    list_select_related = ["tenant", "invited_by"]
    search_fields = ["email", "tenant__name"]
    search_help_text = "Address or tenant"
    ordering = ["-created_at"]
    autocomplete_fields = ["tenant"]
    actions = ["withdraw"]

    def get_urls(self) -> list[URLPattern]:
        own = path("<int:pk>/link/", self.admin_site.admin_view(self.show_link), name="tenants_invitation_link")
        return [own, *super().get_urls()]

    def get_fields(self, request: HttpRequest, obj: Invitation | None = None) -> list[str]:
        if obj is None:
            return ["tenant", "email", "role"]
        return ["tenant", "email", "role", "state", "invited_by", "created_at", "expires_at", "accepted_by"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_withdraw_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_change_permission(self, request)

    def save_model(self, request: HttpRequest, obj: Invitation, form: Any, change: bool) -> None:
        made = invitations.invite(obj.tenant, obj.email, obj.role, request.user)
        obj.pk = made.row.pk
        request.new_invitation = made  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: Invitation, post_url_continue: str | None = None) -> HttpResponse:
        made = request.new_invitation  # type: ignore[attr-defined]
        if settings.EMAIL_IS_SENT:
            try:
                invitations.send(made)
            except OSError:
                text = "The mail could not be sent. Give the link to the person yourself."
                self.message_user(request, text, messages.WARNING)
            else:
                self.message_user(request, f"The invitation was sent to {obj.email}.", messages.SUCCESS)
                return to_list(self)
        page = HttpResponseRedirect(reverse("admin:tenants_invitation_link", args=[obj.pk]))
        return shown_once.keep(request, page, invitations.hand_over(made))

    def show_link(self, request: HttpRequest, pk: int) -> HttpResponse:
        return showing_secret(self, request, pk, "admin/tenants/invitation/link.html", "The link of the invitation")

    @admin.display(description="state")
    def state(self, invitation: Invitation) -> SafeString:
        if invitation.accepted_at:
            return badge("accepted", "ok")
        if invitation.withdrawn_at:
            return badge("withdrawn", "off")
        return badge("too old", "off") if invitation.expires_at <= timezone.now() else badge("open", "warn")

    @admin.action(description="Withdraw selected invitations…", permissions=["withdraw"])
    def withdraw(self, request: HttpRequest, queryset: Any) -> TemplateResponse | None:
        page = ask(
            self, request, queryset.open(), title="Withdraw these invitations?", button="Withdraw",
            text="Their links stop working.", detail=lambda row: f"as {row.role}", nothing="None of these is open.",
        )  # fmt: skip
        return page or apply(self, request, queryset.open(), "Withdrawn", withdrawn_at=timezone.now())
