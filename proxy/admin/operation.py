"""What the gateway says of itself. Nobody edits it."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import BigIntegerField, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from proxy.models import ConfigRevision, ModelJob, RefusalCount, WorkerReport
from proxy.refusal_reasons import reason
from tenants.administering import LargeTableAdmin, ReadOnlyAdmin, badge

TONES = {"running": "warn", "done": "ok", "failed": "bad", "cancelled": "off"}


@admin.register(ConfigRevision)
class ConfigRevisionAdmin(ReadOnlyAdmin):
    purpose = "Which tables of rules changed, in milliseconds since 1970."
    list_display = ["table", "revision"]
    fields = ["table", "revision"]
    ordering = ["table"]


@admin.register(WorkerReport)
class WorkerReportAdmin(ReadOnlyAdmin):
    purpose = "The processes that serve calls now."
    list_display = ["host", "pid", "rules", "calls", "waiting", "where", "started_at", "seen_at"]
    fields = ["host", "pid", "rules", "rules_of", "calls", "waiting", "where", "started_at", "seen_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        tables = ConfigRevision.objects.order_by().annotate(one=Value(1)).values("one")
        now = Subquery(tables.annotate(total=Sum("revision")).values("total"), output_field=BigIntegerField())
        return super().get_queryset(request).running().annotate(revision_now=Coalesce(now, Value(0)))

    @admin.display(description="rules")
    def rules(self, worker: Any) -> SafeString:
        return badge("as they are now", "ok") if worker.revision >= worker.revision_now else badge("older", "warn")

    @admin.display(description="listens on")
    def where(self, worker: WorkerReport) -> str:
        return ", ".join(worker.listens)


@admin.register(RefusalCount)
class RefusalCountAdmin(LargeTableAdmin):
    purpose = "Calls that were refused before they began, by minute and reason. They have no records."
    list_display = ["minute", "why", "code", "key_prefix", "count", "explain"]
    list_filter = ["minute"]
    search_fields = ["=key_prefix", "=code"]
    search_help_text = "Prefix of a key or code of a reason: the whole of it"
    ordering = ["-minute", "code", "key_prefix"]
    fields = ["minute", "why", "code", "key_prefix", "count"]

    @admin.display(description="why")
    def why(self, refusal: RefusalCount) -> str:
        return reason(refusal.code)

    @admin.display(description="")
    def explain(self, refusal: RefusalCount) -> SafeString:
        return format_html('<a href="{}?key={}">Explain</a>', reverse("admin:explain"), refusal.key_prefix)


@admin.register(ModelJob)
class ModelJobAdmin(ReadOnlyAdmin):
    purpose = "Pulls, loads, unloads and deletions of models. They are started on the page of a backend."
    list_display = ["started_at", "action", "model", "backend", "shown_state", "started_by", "finished_at"]
    list_filter = ["state", "action"]
    list_select_related = ["backend", "started_by"]
    search_fields = ["model", "backend__name"]
    search_help_text = "Model or backend"
    show_full_result_count = False
    ordering = ["-id"]
    fields = [
        "backend", "model", "action", "shown_state", "problem", "completed", "total", "started_by", "started_at",
        "finished_at",
    ]  # fmt: skip

    @admin.display(description="state", ordering="state")
    def shown_state(self, job: ModelJob) -> SafeString:
        return badge(job.state, TONES[job.state])


@admin.register(LogEntry)
class LogEntryAdmin(LargeTableAdmin):
    """Only superusers see it: it names rows of all tables."""

    purpose = "Who changed what in this admin."
    list_display = ["action_time", "user", "content_type", "object_repr", "change"]
    list_filter = ["action_time", "action_flag"]
    list_select_related = ["user", "content_type"]
    search_fields = ["object_repr", "user__username"]
    search_help_text = "Name of the row, or user"
    ordering = ["-id"]
    fields = ["action_time", "user", "content_type", "object_repr", "change"]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_view_permission(self, request: HttpRequest, obj: LogEntry | None = None) -> bool:
        return request.user.is_superuser

    @admin.display(description="change")
    def change(self, entry: LogEntry) -> str:
        return entry.get_change_message()
