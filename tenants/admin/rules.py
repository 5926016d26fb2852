"""How much."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import money
from tenants.administering import apply, ask, badge
from tenants.limit_forms import AmountsForm
from tenants.models import Limit


@admin.register(Limit)
class LimitAdmin(admin.ModelAdmin):
    purpose = "How many calls, tokens, cost or calls at a time, for whom and in which window."
    form = AmountsForm
    list_display = ["subject_shown", "metric", "shown_amount", "shown_window", "model", "shown_mode", "alert", "set_by"]
    list_filter = ["scope", "metric", "window", "mode", "alert", ("managed_by", admin.EmptyFieldListFilter)]
    list_select_related = ["tenant", "user", "key", "managed_by"]
    search_fields = ["tenant__name", "user__username", "key__name", "key__prefix", "model"]
    search_help_text = "Tenant, user, key or model"
    autocomplete_fields = ["tenant", "user", "key"]
    fieldsets = [
        ("For whom", {"fields": ["scope", "tenant", "user", "key"]}),
        ("How much", {"fields": ["metric", "amount", "window", "window_seconds", "model"]}),
        ("What happens when it is used up", {"fields": ["mode", "alert"]}),
        ("More for a while", {
            "fields": ["override_amount", "override_until"],
            "description": "From that moment on the old amount holds again, by itself.",
        }),
    ]  # fmt: skip
    ordering = ["scope", "id"]
    actions = ["only_count", "enforce"]

    @admin.display(description="for", ordering="scope")
    def subject_shown(self, limit: Limit) -> str:
        subject = limit.tenant or limit.user or limit.key
        return f"{limit.scope} {subject}" if subject else limit.get_scope_display()

    @admin.display(description="amount", ordering="amount")
    def shown_amount(self, limit: Limit) -> str:
        if not limit.override_holds:
            return _written(limit, limit.amount)
        until = timezone.localtime(limit.override_until)
        return f"{_written(limit, limit.override_amount or 0)} until {until:%Y-%m-%d %H:%M}, then " + _written(
            limit, limit.amount
        )

    @admin.display(description="set by", ordering="managed_by")
    def set_by(self, limit: Limit) -> str:
        return f"owners of {limit.managed_by}" if limit.managed_by else "administrators"

    @admin.display(description="window", ordering="window")
    def shown_window(self, limit: Limit) -> str:
        if limit.window == Limit.Window.SECONDS:
            return f"{limit.window_seconds} s, rolling"
        return "" if limit.window == Limit.Window.NONE else limit.get_window_display()

    @admin.display(description="mode", ordering="mode")
    def shown_mode(self, limit: Limit) -> SafeString:
        return badge("enforced", "ok") if limit.mode == Limit.Mode.ENFORCE else badge("only counted", "warn")

    @admin.action(description="Only count selected limits, refuse nothing…", permissions=["change"])
    def only_count(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = queryset.filter(mode=Limit.Mode.ENFORCE)
        page = ask(
            self, request, queryset, title="Only count with these limits?", button="Only count",
            text="They go on counting and refuse nothing any more.", nothing="None of these limits is enforced.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Only counting", mode=Limit.Mode.SHADOW)

    @admin.action(description="Enforce selected limits…", permissions=["change"])
    def enforce(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = queryset.filter(mode=Limit.Mode.SHADOW)
        page = ask(
            self, request, queryset, title="Enforce these limits?", button="Enforce",
            text="What is over them already is refused from now on.", nothing="All of these limits are enforced.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Enforced", mode=Limit.Mode.ENFORCE)


def _written(limit: Limit, amount: int) -> str:
    return money.with_currency(amount) if limit.metric == Limit.Metric.COST else f"{amount:,}"
