"""From where, and how much."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import money
from tenants.administering import apply, ask, badge
from tenants.models import IPRule, Limit


@admin.register(IPRule)
class IPRuleAdmin(admin.ModelAdmin):
    purpose = "From which networks calls may come. The longest prefix wins; one allowing rule denies the rest."
    list_display = ["cidr", "shown_action", "scope", "acts_as", "state", "expires_at", "note"]
    list_filter = ["action", ("tenant", admin.EmptyFieldListFilter), ("acts_as", admin.EmptyFieldListFilter)]
    list_select_related = ["tenant", "key", "acts_as"]
    search_fields = ["cidr", "note", "tenant__name", "key__name", "key__prefix"]
    search_help_text = "Network, note, tenant or key"
    autocomplete_fields = ["tenant", "key", "acts_as"]
    fieldsets = [
        (None, {"fields": ["cidr", "action", "expires_at", "note"]}),
        ("For whom", {"fields": ["tenant", "key"], "description": "Leave both empty for a rule that holds for all."}),
        ("Calls without a key", {"fields": ["acts_as"]}),
    ]
    ordering = ["-id"]

    @admin.display(description="action", ordering="action")
    def shown_action(self, rule: IPRule) -> SafeString:
        return badge(rule.action, "ok" if rule.action == IPRule.Action.ALLOW else "bad")

    @admin.display(description="for")
    def scope(self, rule: IPRule) -> str:
        return str(rule.tenant or rule.key or "all")

    @admin.display(description="state")
    def state(self, rule: IPRule) -> SafeString:
        over = rule.expires_at is not None and rule.expires_at <= timezone.now()
        return badge("expired", "off") if over else badge("in force", "ok")


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
    purpose = "How many calls, tokens, cost or calls at a time, for whom and in which window."
    form = LimitForm
    list_display = ["subject_shown", "metric", "shown_amount", "shown_window", "model", "shown_mode"]
    list_filter = ["scope", "metric", "window", "mode"]
    list_select_related = ["tenant", "user", "key"]
    search_fields = ["tenant__name", "user__username", "key__name", "key__prefix", "model"]
    search_help_text = "Tenant, user, key or model"
    autocomplete_fields = ["tenant", "user", "key"]
    fieldsets = [
        ("For whom", {"fields": ["scope", "tenant", "user", "key"]}),
        ("How much", {"fields": ["metric", "amount", "window", "window_seconds", "model"]}),
        ("What happens when it is used up", {"fields": ["mode"]}),
    ]
    ordering = ["scope", "id"]
    actions = ["only_count", "enforce"]

    @admin.display(description="for", ordering="scope")
    def subject_shown(self, limit: Limit) -> str:
        subject = limit.tenant or limit.user or limit.key
        return f"{limit.scope} {subject}" if subject else limit.get_scope_display()

    @admin.display(description="amount", ordering="amount")
    def shown_amount(self, limit: Limit) -> str:
        return money.shown(limit.amount) if limit.metric == Limit.Metric.COST else f"{limit.amount:,}"

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
