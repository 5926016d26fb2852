"""The page of a table that has one row."""

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest


class OneRowAdmin(admin.ModelAdmin):
    """It may be written where it is not there yet, and changed; its number is 1."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) and not self.get_queryset(request).exists()

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        obj.pk = 1
        super().save_model(request, obj, form, change)
