"""Routes for what a newer Ollama adds."""

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.utils.safestring import SafeString

from proxy.models import PassThroughRoute
from tenants.administering import badge


@admin.register(PassThroughRoute)
class PassThroughRouteAdmin(admin.ModelAdmin):
    """Superusers alone: what is passed on reaches servers that trust everybody (threats P1, P2)."""

    purpose = "Further paths that are passed on to the servers, for what a newer Ollama can. All others are refused."
    list_display = ["path", "method", "right", "names_model", "state", "note"]
    list_filter = ["right", "method", "enabled"]
    search_fields = ["path", "note"]
    search_help_text = "Path or note"
    fields = ["path", "method", "right", "names_model", "enabled", "note"]

    @admin.display(description="state", ordering="enabled")
    def state(self, route: PassThroughRoute) -> SafeString:
        return badge("on", "ok") if route.enabled else badge("switched off", "off")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser
