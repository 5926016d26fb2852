"""Who changed what: read, searched and exported, never written."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_GET

from tenants import rate_limits
from tenants.administering import LargeTableAdmin, badge, moment, to_list
from tenants.auditing import tracked_models
from tenants.changes import ACTIONS, COLUMNS, TONES, harmless, pages, rows, shown
from tenants.models import AuditEntry, Tenant
from tenants.spreadsheets import csv_answer

# Of so many of the newest entries, filters offer the actors and tenants. Others are found by search.
OFFERED_OF = 2000


def _newest() -> QuerySet[AuditEntry]:
    return AuditEntry.objects.filter(pk__in=AuditEntry.objects.order_by("-pk").values("pk")[:OFFERED_OF])


class Actor(admin.SimpleListFilter):
    title = parameter_name = "actor"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        names = set(_newest().order_by().values_list("actor_name", flat=True).distinct())
        names |= {name for name in [request.GET.get("actor")] if name}
        return [(name, harmless(name)) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(actor_name=self.value()) if self.value() else queryset


class ConcernedTenant(admin.SimpleListFilter):
    title = parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        numbers = set(_newest().order_by().exclude(tenant=None).values_list("tenant", flat=True).distinct())
        if (chosen := request.GET.get("tenant", "")).isdecimal() and len(chosen) < 19:
            numbers.add(int(chosen))
        names = Tenant.objects.filter(pk__in=numbers).order_by("name").values_list("pk", "name")
        return [*((str(number), harmless(name)) for number, name in names), ("none", "no tenant in particular")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() in {value for value, _ in self.lookup_choices}:
            return queryset.filter(tenant=None if self.value() == "none" else int(self.value()))
        return queryset.none() if self.value() else queryset


class Kind(admin.SimpleListFilter):
    title = "kind of object"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        choices = [(model._meta.label_lower, str(model._meta.verbose_name)) for model in tracked_models()]
        return sorted(choices, key=lambda choice: choice[1].lower())

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        models = {model._meta.label_lower: model for model in tracked_models()}
        if not self.value():
            return queryset
        if self.value() not in models:
            return queryset.none()
        return queryset.filter(content_type=ContentType.objects.get_for_model(models[self.value()]))


class Action(admin.SimpleListFilter):
    title = parameter_name = "action"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> Sequence[tuple[str, str]]:
        return [(word, word.capitalize()) for word in ACTIONS.values()]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        numbers = [number for number, word in ACTIONS.items() if word == self.value()]
        return queryset.filter(action__in=numbers) if self.value() else queryset


@admin.register(AuditEntry)
class AuditEntryAdmin(LargeTableAdmin):
    """To be read by superusers, and by those of the staff who were given the permission to."""

    purpose = "Who changed what, from where: before and after."
    change_list_template = "admin/tenants/auditentry/change_list.html"
    change_form_template = "admin/tenants/auditentry/change_form.html"
    list_display = ["at", "who", "shown_action", "what", "change", "shown_tenant"]
    list_filter = [Actor, Kind, Action, "via", ConcernedTenant, "timestamp"]
    list_select_related = ["tenant"]
    search_fields = ["object_repr", "actor_name", "=remote_addr", "=cid"]
    search_help_text = "Object, actor, address, or the id of a request"
    ordering = ["-id"]
    fields = [
        "at",
        "shown_actor",
        "via",
        "address",
        "shown_action",
        "kind",
        "shown_object",
        "shown_tenant",
        "request_id",
    ]
    readonly_fields = [
        "at",
        "shown_actor",
        "address",
        "shown_action",
        "kind",
        "shown_object",
        "shown_tenant",
        "request_id",
    ]

    def get_urls(self) -> list[URLPattern]:
        export = rate_limits.limited(rate_limits.EXPORT, rate_limits.user, "GET")(require_GET(self.export))
        own = path("export/", self.admin_site.admin_view(export), name="tenants_auditentry_export")
        return [own, *super().get_urls()]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        # With the kind: the whole life of one row.
        return lookup == "object_pk" or super().lookup_allowed(lookup, value, request)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        query = request.GET.copy()
        for page in ("p", "e"):
            query.pop(page, None)
        link = f"{reverse('admin:tenants_auditentry_export')}?{query.urlencode()}"
        return super().changelist_view(request, {"export": link, **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        entry = self.get_object(request, object_id)
        more: dict[str, Any] = {}
        if entry is not None:
            kind = ContentType.objects.get_for_id(entry.content_type_id)
            query = urlencode({"kind": f"{kind.app_label}.{kind.model}", "object_pk": entry.object_pk})
            more = {"noted": shown(entry), "of_this_row": f"{reverse('admin:tenants_auditentry_changelist')}?{query}"}
        return super().change_view(request, object_id, form_url, {**more, **(extra_context or {})})

    def export(self, request: HttpRequest) -> HttpResponseBase:
        """What the list shows, with the same filters, and all of it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            found = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return to_list(self)
        return csv_answer(request, "audit", COLUMNS, rows(map(shown, pages(found))))

    # Lists.

    @admin.display(description="time", ordering="id")
    def at(self, entry: AuditEntry) -> str:
        return moment(entry.timestamp)

    @admin.display(description="actor")
    def shown_actor(self, entry: AuditEntry) -> str:
        return harmless(entry.actor_name)

    @admin.display(description="actor")
    def who(self, entry: AuditEntry) -> SafeString:
        return format_html('{}<br><span class="quiet">{}</span>', harmless(entry.actor_name), entry.remote_addr or "")

    @admin.display(description="address")
    def address(self, entry: AuditEntry) -> str:
        return entry.remote_addr or "–"

    @admin.display(description="id of the request")
    def request_id(self, entry: AuditEntry) -> str:
        return entry.cid or "–"

    @admin.display(description="action")
    def shown_action(self, entry: AuditEntry) -> SafeString:
        word = ACTIONS.get(entry.action, "changed")
        return badge(word, TONES[word])

    @admin.display(description="kind")
    def kind(self, entry: AuditEntry) -> str:
        return shown(entry).kind

    @admin.display(description="what")
    def what(self, entry: AuditEntry) -> SafeString:
        return format_html("{}<br>{}", shown(entry).kind, harmless(entry.object_repr))

    @admin.display(description="object")
    def shown_object(self, entry: AuditEntry) -> str:
        return harmless(entry.object_repr)

    @admin.display(description="tenant")
    def shown_tenant(self, entry: AuditEntry) -> str:
        return harmless(str(entry.tenant or "–"))

    @admin.display(description="change")
    def change(self, entry: AuditEntry) -> str:
        return shown(entry).summary
