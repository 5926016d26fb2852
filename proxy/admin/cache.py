"""What is kept of answers: the rule, what it saves, and throwing it away."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, LogEntry
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from proxy import cache_report
from proxy.admin.one_row import OneRowAdmin
from proxy.models import CachePurge, CacheSettings, CacheUse
from tenants.administering import AskingAdmin, AskingForm, ReadOnlyAdmin, ask
from tenants.models import Tenant


@admin.register(CacheSettings)
class CacheSettingsAdmin(OneRowAdmin):
    purpose = (
        "Which answers are kept, for how long, and what they cost. Tenants and keys may have policies of their own."
    )
    list_display = ["__str__", "policy", "ttl_seconds", "charges"]
    fields = ["policy", "ttl_seconds", "charges"]


class CachePurgeForm(AskingForm):
    def what_it_does(self) -> str:
        if self.instance.tenant_id or self.instance.model:
            return ""
        return "No tenant and no model is chosen: all answers that are kept for anybody are thrown away."


@admin.register(CachePurge)
class CachePurgeAdmin(AskingAdmin):
    """Adding one is what purges."""

    form = CachePurgeForm
    purpose = "Kept answers that were thrown away. Add one to throw away those of a tenant, of a model, or all."
    list_display = ["at", "what", "by"]
    list_select_related = ["tenant"]
    autocomplete_fields = ["tenant"]
    fields = ["tenant", "model"]
    ordering = ["-id"]
    show_full_result_count = False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "model", *(["at", "by"] if obj else [])]

    def save_model(self, request: HttpRequest, obj: CachePurge, form: Any, change: bool) -> None:
        obj.by = request.user.get_username()
        super().save_model(request, obj, form, change)

    @admin.display(description="answers")
    def what(self, purge: CachePurge) -> str:
        return purge.what


@admin.register(CacheUse)
class CacheUseAdmin(ReadOnlyAdmin):
    """The page of the cache: what it holds and saves, over a list of tenants and days."""

    purpose = "What was answered without generating it, and what that saved."
    change_list_template = "admin/proxy/cacheuse/change_list.html"
    list_display = [
        "day",
        "tenant",
        "hits",
        "coalesced",
        "misses",
        "bypassed",
        "percent",
        "gpu_seconds",
        "saved_tokens",
    ]
    list_filter = ["day"]
    list_select_related = ["tenant"]
    search_fields = ["tenant__name"]
    search_help_text = "Tenant"
    fields = list_display
    ordering = ["-day", "tenant"]
    show_full_result_count = False
    actions = ["purge"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        return super().changelist_view(request, {"report": cache_report.read(), **(extra_context or {})})

    def has_purge_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("proxy.add_cachepurge")

    @admin.action(description="Throw away what is kept for the tenants of selected rows…", permissions=["purge"])
    def purge(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        tenants = Tenant.objects.filter(pk__in=queryset.order_by().values("tenant"))
        page = ask(
            self, request, tenants, title="Throw away the kept answers of these tenants?", button="Throw away",
            text="Their next calls are generated anew. Tenants that share answers with each other lose them together.",
            nothing="None of these tenants is there any more.",
        )  # fmt: skip
        if page is not None:
            return page
        purges = [CachePurge.objects.create(tenant=tenant, by=request.user.get_username()) for tenant in tenants]
        LogEntry.objects.log_actions(request.user.pk, purges, ADDITION)
        self.message_user(request, f"Threw away the kept answers of {len(purges)} tenants.", messages.SUCCESS)
        return None

    @admin.display(description="answered without generating")
    def percent(self, use: CacheUse) -> str:
        asked = use.hits + use.coalesced + use.misses
        return f"{100 * (use.hits + use.coalesced) / asked:.1f} %" if asked else "–"

    @admin.display(description="saved GPU seconds", ordering="saved_gpu_us")
    def gpu_seconds(self, use: CacheUse) -> str:
        return f"{use.saved_gpu_us / 1_000_000:,.1f}"
