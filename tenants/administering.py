"""Habits that the admin pages of all apps share."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from tenants import money


class ReadOnlyAdmin(admin.ModelAdmin):
    """For what machines write."""

    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class FirstPages(Paginator):
    """The first pages of a table too large to count. What lies beyond is found by filters and search."""

    ROWS = 2000

    @cached_property
    def count(self) -> int:
        return len(self.object_list.values_list("pk")[: self.ROWS])


class FixedOrder(ChangeList):
    """Sorted as there is an index for, whatever the address of the page says."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet) -> list[str]:
        return list(self.model_admin.get_ordering(request))


class LargeTableAdmin(ReadOnlyAdmin):
    """Neither counts nor sorts the whole table."""

    paginator = FirstPages
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return FixedOrder


class Archived(admin.SimpleListFilter):
    """Archived rows are hidden until they are asked for."""

    title = "deleted"
    parameter_name = "archived"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> Sequence[tuple[str, str]]:
        return [("yes", "Deleted"), ("all", "All")]

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        first, *others = super().choices(changelist)
        yield {**first, "display": "Not deleted"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() == "all":
            return queryset
        return queryset.filter(archived_at__isnull=self.value() != "yes")


class ArchivingAdmin(admin.ModelAdmin):
    """Deleting archives: usage records keep pointing at the row."""

    what_archiving_does = ""
    actions = ["restore"]

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        obj.archive()

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        queryset.archive()

    def get_deleted_objects(
        self, objs: Sequence[Model], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Nothing related goes with it, and nothing protects it."""
        allowed = self.has_delete_permission(request)
        denied = set() if allowed else {str(self.opts.verbose_name)}
        count = {str(self.opts.verbose_name_plural): len(objs)}
        return [f"{obj}: {self.what_archiving_does}" for obj in objs], count, denied, []

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        if request.path.endswith("/autocomplete/"):
            queryset = queryset.current()
        return super().get_search_results(request, queryset, search_term)

    @admin.action(description="Restore selected %(verbose_name_plural)s", permissions=["delete"])
    def restore(self, request: HttpRequest, queryset: QuerySet) -> None:
        restored = queryset.exclude(archived_at=None).update(archived_at=None)
        self.message_user(request, f"Restored {restored}.", messages.SUCCESS)


class MoneyField(forms.DecimalField):
    """Whole nano-units, shown and written in units of the currency."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(min_value=0, decimal_places=money.DIGITS, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return money.shown(value) if isinstance(value, int) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(self.prepare_value(initial), data)

    def clean(self, value: Any) -> int | None:  # type: ignore[override]
        number = super().clean(value)
        if number is None:
            return None
        try:
            return money.to_nano(number)
        except ValueError as exc:
            raise ValidationError(str(exc)) from None
