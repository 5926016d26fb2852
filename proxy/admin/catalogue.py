"""Names and rules of models."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from proxy.admin.one_row import OneRowAdmin
from proxy.models import DefaultModels, ModelAlias, ModelPolicy
from tenants.administering import apply, ask, badge


@admin.register(ModelAlias)
class ModelAliasAdmin(admin.ModelAdmin):
    purpose = "Other names that models answer to. An exact name beats the longest pattern."
    list_display = ["pattern", "stands_for", "state"]
    list_filter = ["enabled"]
    search_fields = ["pattern", "model"]
    search_help_text = "Alias or model"
    fields = ["pattern", "model", "enabled"]
    ordering = ["pattern"]
    actions = ["disable", "enable"]

    @admin.display(description="state", ordering="enabled")
    def state(self, alias: ModelAlias) -> SafeString:
        return badge("on", "ok") if alias.enabled else badge("switched off", "off")

    @admin.action(description="Switch off selected aliases…", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = queryset.filter(enabled=True)
        page = ask(
            self, request, queryset, title="Switch these aliases off?", button="Switch off",
            text="Calls for these names get 404, unless there is a model or another pattern that fits.",
            nothing="None of these aliases is on.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Switched off", enabled=False)

    @admin.action(description="Switch on selected aliases", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return apply(self, request, queryset.filter(enabled=False), "Switched on", enabled=True)


@admin.register(DefaultModels)
class DefaultModelsAdmin(OneRowAdmin):
    purpose = "What answers for gpt-*, claude-* and the names of other services."
    list_display = ["__str__", "chat_model", "embedding_model"]
    fields = ["chat_model", "embedding_model"]


@admin.register(ModelPolicy)
class ModelPolicyAdmin(admin.ModelAdmin):
    purpose = "What is set for every call of a model: context, load options, time in memory, length of answers."
    list_display = ["pattern", "num_ctx", "options", "keep_alive", "max_output_tokens"]
    search_fields = ["pattern"]
    search_help_text = "Model or pattern"
    fieldsets = [
        (None, {"fields": ["pattern"]}),
        ("How the model is loaded", {
            "fields": ["num_ctx", "load_options", "keep_alive"],
            "description": "Calls that differ in these would make Ollama load the model anew each time.",
        }),
        ("Answers", {"fields": ["max_output_tokens"]}),
    ]  # fmt: skip
    ordering = ["pattern"]

    @admin.display(description="load options")
    def options(self, policy: ModelPolicy) -> str:
        return ", ".join(f"{name} {value}" for name, value in sorted(policy.load_options.items()))
