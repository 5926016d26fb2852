"""Who changed what: read, searched and exported, never written."""

from django.contrib import admin

from tenants.administering import LargeTableAdmin
from tenants.models import AuditEntry


@admin.register(AuditEntry)
class AuditEntryAdmin(LargeTableAdmin):
    purpose = "Who changed what, from where: before and after."
    list_display = ["timestamp", "actor_name", "via", "remote_addr", "action", "object_repr", "tenant"]
    list_select_related = ["tenant"]
    search_fields = ["object_repr", "actor_name"]
    ordering = ["-id"]
