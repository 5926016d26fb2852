"""What was used, which nobody edits, and what it costs."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from tenants import money
from tenants.administering import LargeTableAdmin, MoneyField, badge
from usage import request_lists
from usage.models import DailyUsage, Outcome, Price, UsageBucket, UsageRecord
from usage.models.records import FAILED, SUCCESSES


class Lately:
    """Of a filter that has no index: a bounded number of the newest rows is looked through, those of the chosen dates
    if there are any; else a rare value would have all rows read."""

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet | None:
        parameters = self.used_parameters  # type: ignore[attr-defined]
        if not parameters:
            return queryset
        if parameters.get("outcome__exact", [Outcome.OK])[0] not in SUCCESSES:
            queryset = queryset.filter(FAILED)
        return super().queryset(request, request_lists.newest(queryset))  # type: ignore[misc]


class ChoicesLately(Lately, admin.ChoicesFieldListFilter):
    pass


class BooleanLately(Lately, admin.BooleanFieldListFilter):
    pass


@admin.register(UsageRecord)
class UsageRecordAdmin(LargeTableAdmin):
    purpose = "One row for each admitted call."
    list_display = [
        "started_at", "shown_outcome", "model", "tokens_in", "tokens_out", "cost", "milliseconds", "tenant_name",
        "key_name", "backend", "status",
    ]  # fmt: skip
    # Only what has its choices in the code: to find those of another column, all rows would be read.
    list_filter = [
        "started_at", ("outcome", ChoicesLately), ("stream", BooleanLately), ("estimated", BooleanLately),
    ]  # fmt: skip
    ordering = ["-started_at", "-id"]
    search_fields = ["client_request_id"]
    search_help_text = "Our request id, or the x-request-id of the client: the whole of it"
    fieldsets = [
        (None, {"fields": ["id", "client_request_id", "started_at", "finished_at", "outcome", "status", "error"]}),
        ("Who", {"fields": ["tenant_name", "user_name", "end_user", "key_name", "client_address", "user_agent"]}),
        (
            "What",
            {
                "fields": [
                    "model_asked", "model", "model_digest", "endpoint", "dialect", "stream", "backend", "attempts",
                    "bytes_in", "bytes_out",
                ]
            },
        ),
        (
            "Time, in microseconds",
            {
                "fields": [
                    "queue_us", "load_us", "prefill_us", "decode_us", "first_token_us", "total_us", "gateway_us",
                ]
            },
        ),
        ("Tokens and cost", {"fields": ["prompt_tokens", "completion_tokens", "estimated", "cost", "price"]}),
    ]  # fmt: skip
    readonly_fields = ["cost"]

    def get_search_results(self, request: HttpRequest, queryset: QuerySet, search_term: str) -> tuple[QuerySet, bool]:
        """By whole ids, which have indexes."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            found = queryset.filter(pk=UUID(term))
        except ValueError:
            found = queryset.none()
        # The first half is the condition of the index, which SQLite does not conclude by itself.
        of_client = queryset.filter(~Q(client_request_id="") & Q(client_request_id=term))
        return (found if found.exists() else of_client), False

    @admin.display(description="outcome")
    def shown_outcome(self, record: UsageRecord) -> SafeString:
        cancelled = record.outcome == Outcome.CANCELLED
        return badge(record.outcome, "ok" if record.outcome in SUCCESSES else "warn" if cancelled else "bad")

    @admin.display(description="tokens in")
    def tokens_in(self, record: UsageRecord) -> str:
        return f"{record.prompt_tokens:,}"

    @admin.display(description="tokens out")
    def tokens_out(self, record: UsageRecord) -> str:
        return f"{'≈ ' if record.estimated else ''}{record.completion_tokens:,}"

    @admin.display(description="cost")
    def cost(self, record: UsageRecord) -> str:
        return "no price" if record.cost_nano is None else f"{money.shown(record.cost_nano)} {record.currency}"

    @admin.display(description="ms")
    def milliseconds(self, record: UsageRecord) -> int:
        return record.total_us // 1000


class SumsAdmin(LargeTableAdmin):
    list_select_related = ["tenant", "api_key", "user"]
    SUMS = (
        "tenant", "api_key", "user", "model", "backend", "requests", "failures", "prompt_tokens",
        "completion_tokens", "cost", "unpriced", "estimated",
    )  # fmt: skip
    readonly_fields = ["cost"]

    @admin.display(description="cost")
    def cost(self, sums: Any) -> str:
        return money.shown(sums.cost_nano)


@admin.register(UsageBucket)
class UsageBucketAdmin(SumsAdmin):
    purpose = "Sums of 15 minutes. Pages of up to 92 days read these."
    list_display = ["start", *SumsAdmin.SUMS]
    list_filter = ["start"]
    ordering = ["-start", "-tenant", "-api_key"]
    fields = ["start", *SumsAdmin.SUMS, "decode_us", "total_us"]


@admin.register(DailyUsage)
class DailyUsageAdmin(SumsAdmin):
    purpose = "Sums of days. They stay when old records are pruned."
    list_display = ["day", *SumsAdmin.SUMS]
    list_filter = ["day"]
    ordering = ["-day", "-tenant", "-api_key"]
    fields = ["day", *SumsAdmin.SUMS, "decode_us", "total_us"]


class PriceForm(forms.ModelForm):
    input_nano = MoneyField(label="Input", initial=0, help_text="Units of the currency per 1,000,000 prompt tokens.")
    output_nano = MoneyField(label="Output", initial=0, help_text="Per 1,000,000 generated tokens.")
    gpu_second_nano = MoneyField(label="GPU-second", initial=0)
    kwh_nano = MoneyField(label="kWh", initial=0, help_text="Times the watts below, while generating.")

    def clean_model(self) -> str:
        return self.cleaned_data["model"].strip().lower()


@admin.register(Price)
class PriceAdmin(admin.ModelAdmin):
    """A price in force is not edited: calls point at the row they were made at. A newer one replaces it."""

    purpose = "What tokens, GPU time and power cost, from when on. A newer price replaces an older one."
    form = PriceForm
    list_display = ["model", "backend", "state", "input", "output", "gpu_second", "kwh", "watts", "valid_from"]
    search_help_text = "Model or pattern, or backend"
    list_filter = ["valid_from"]
    search_fields = ["model", "backend"]
    ordering = ["model", "backend", "-valid_from"]
    fields = ["model", "backend", "input_nano", "output_nano", "gpu_second_nano", "kwh_nano", "watts", "valid_from"]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_change_permission(request, obj) and not in_force(obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        # Without a row this is asked about deleting several at once.
        return obj is not None and super().has_delete_permission(request, obj) and not in_force(obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        newer = Price.objects.filter(
            model=OuterRef("model"),
            backend=OuterRef("backend"),
            valid_from__gt=OuterRef("valid_from"),
            valid_from__lte=timezone.now(),
        )
        return super().get_queryset(request).annotate(replaced=Exists(newer))

    @admin.display(description="state")
    def state(self, price: Any) -> SafeString:
        if not in_force(price):
            return badge("from later on", "warn")
        return badge("replaced", "off") if price.replaced else badge("in force", "ok")

    @admin.display(description="input / 1 M", ordering="input_nano")
    def input(self, price: Price) -> str:
        return money.shown(price.input_nano)

    @admin.display(description="output / 1 M", ordering="output_nano")
    def output(self, price: Price) -> str:
        return money.shown(price.output_nano)

    @admin.display(description="GPU-second", ordering="gpu_second_nano")
    def gpu_second(self, price: Price) -> str:
        return money.shown(price.gpu_second_nano)

    @admin.display(description="kWh", ordering="kwh_nano")
    def kwh(self, price: Price) -> str:
        return money.shown(price.kwh_nano)


def in_force(price: Model | None) -> bool:
    return isinstance(price, Price) and price.is_in_force
