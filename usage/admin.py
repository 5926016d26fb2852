"""What was used, which nobody edits, and what it costs."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from tenants import money
from tenants.administering import LargeTableAdmin, MoneyField
from usage.models import DailyUsage, Price, UsageBucket, UsageRecord


@admin.register(UsageRecord)
class UsageRecordAdmin(LargeTableAdmin):
    list_display = [
        "started_at", "tenant_name", "key_name", "model", "backend", "outcome", "status", "prompt_tokens",
        "completion_tokens", "cost", "milliseconds",
    ]  # fmt: skip
    # Only what has its choices in the code: to find those of another column, all rows would be read.
    list_filter = ["started_at", "outcome", "stream", "estimated"]
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
        return (found if found.exists() else queryset.filter(client_request_id=term)), False

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
    list_display = ["start", *SumsAdmin.SUMS]
    list_filter = ["start"]
    ordering = ["-start", "-tenant", "-api_key"]
    fields = ["start", *SumsAdmin.SUMS, "decode_us", "total_us"]


@admin.register(DailyUsage)
class DailyUsageAdmin(SumsAdmin):
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

    form = PriceForm
    list_display = ["model", "backend", "input", "output", "gpu_second", "kwh", "watts", "valid_from"]
    list_filter = ["valid_from"]
    search_fields = ["model", "backend"]
    ordering = ["model", "backend", "-valid_from"]
    fields = ["model", "backend", "input_nano", "output_nano", "gpu_second_nano", "kwh_nano", "watts", "valid_from"]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_change_permission(request, obj) and not in_force(obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        # Without a row this is asked about deleting several at once.
        return obj is not None and super().has_delete_permission(request, obj) and not in_force(obj)

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
    return isinstance(price, Price) and price.valid_from <= timezone.now()
