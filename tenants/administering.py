"""Habits that the admin pages of all apps share."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Count, IntegerField, Model, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString

from tenants import money, shown_once
from tenants.auditing import change

# Rows that a page which asks first names one by one.
MOST_NAMED = 100


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

    @property
    def ends_early(self) -> bool:
        """Whether there may be more than the pages show."""
        return self.result_count >= FirstPages.ROWS


class LargeTableAdmin(ReadOnlyAdmin):
    """Neither counts nor sorts the whole table."""

    paginator = FirstPages
    list_per_page = 50
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

    delete_confirmation_template = "admin/archive.html"
    delete_selected_confirmation_template = "admin/archive_selected.html"
    actions = ["restore"]

    def what_archiving_does_to(self, obj: Any) -> list[str]:
        """What the page that asks first says of one row."""
        raise NotImplementedError

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        obj.archive()

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        queryset.archive()

    def get_deleted_objects(
        self, objs: Sequence[Model], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Nothing related goes with it, and nothing protects it."""
        allowed = self.has_delete_permission(request)
        denied = set() if allowed else {str(self.opts.verbose_name)}
        count = {str(self.opts.verbose_name_plural): len(objs)}
        named: list[Any] = []
        for obj in objs[:MOST_NAMED]:
            named += [str(obj), self.what_archiving_does_to(obj)]
        if len(objs) > MOST_NAMED:
            named.append(f"… and {len(objs) - MOST_NAMED} more")
        return named, count, denied, []

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        if request.path.endswith("/autocomplete/"):
            queryset = queryset.current()
        return super().get_search_results(request, queryset, search_term)

    @admin.action(description="Restore selected %(verbose_name_plural)s", permissions=["delete"])
    def restore(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return apply(self, request, queryset.exclude(archived_at=None), "Restored", archived_at=None)


def badge(text: str, tone: str = "off") -> SafeString:
    """A word for a state. `tone`: ok, warn, bad, off."""
    return format_html('<span class="badge {}">{}</span>', tone, text)


def moment(at: datetime | None) -> str:
    """As Django writes it in lists: on the page of one row it would be a raw text."""
    return date_format(timezone.localtime(at), "DATETIME_FORMAT") if at else ""


def plural(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def counted(rows: Any, by: str) -> Coalesce:
    """For annotate(): how many rows point at each of these by a foreign key."""
    # A subquery: two joins would multiply each other's rows.
    numbers = rows.order_by().filter(**{by: OuterRef("pk")}).values(by).annotate(number=Count("pk")).values("number")
    return Coalesce(Subquery(numbers, output_field=IntegerField()), Value(0))


def save_what_changed(obj: Model, form: Any, *beside: str) -> None:
    """Of a form of the admin, which was filled in from a row as it was: no more than was changed in it, and the
    columns set beside. What somebody else changed meanwhile stays."""
    columns = {column.name for column in obj._meta.concrete_fields}
    names = [name for name in dict.fromkeys((*form.changed_data, *beside)) if name in columns]
    if names:
        obj.save(update_fields=names)


class AskingForm(forms.ModelForm):
    """Where what it would save stops calls or throws something away, it is saved after a yes."""

    confirmed = forms.BooleanField(label="Do it all the same", required=False, widget=forms.HiddenInput)

    def what_it_does(self) -> str:
        """What to ask about; "" if there is nothing to ask."""
        raise NotImplementedError

    def switches_off(self, name: str) -> bool:
        """Whether it unticks this field of a row that is there."""
        return self.instance.pk is not None and name in self.changed_data and not self.cleaned_data[name]

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if not self.errors and (question := self.what_it_does()):
            self.fields["confirmed"].widget = forms.CheckboxInput()
            if not self.cleaned_data.get("confirmed"):
                self.add_error("confirmed", f"{question} Tick this box if that is what you want, and save again.")


class AskingAdmin(admin.ModelAdmin):
    """With an AskingForm, whose question stands above the fields."""

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        (title, first), *others = super().get_fieldsets(request, obj)
        asks = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        form = getattr(self, "add_form", self.form) if obj is None else self.form  # Django's, of users
        if not asks or "confirmed" not in form.base_fields:
            return [(title, first), *others]
        return [(title, {**first, "fields": ["confirmed", *first["fields"]]}), *others]


# Actions.


def ask(
    model_admin: admin.ModelAdmin,
    request: HttpRequest,
    rows: QuerySet,
    *,
    title: str,
    text: str,
    button: str,
    nothing: str,
    detail: Callable[[Any], str] = lambda row: "",
    danger: bool = False,
) -> TemplateResponse | None:
    """The page that asks before an action changes these rows; None when the person has said yes."""
    if request.POST.get("confirmed"):
        return None
    named = [(row, detail(row)) for row in rows[: MOST_NAMED + 1]]
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": title,
        "text": text,
        "button": button,
        "danger": danger,
        "nothing": nothing,
        "rows": named[:MOST_NAMED],
        "more": rows.count() - MOST_NAMED if len(named) > MOST_NAMED else 0,
        "action": request.POST["action"],
        "across": request.POST.get("select_across", "0"),
        "selected": request.POST.getlist(admin.helpers.ACTION_CHECKBOX_NAME),
        "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        "media": model_admin.media,
    }
    return TemplateResponse(request, "admin/ask.html", context)


def apply(model_admin: admin.ModelAdmin, request: HttpRequest, rows: QuerySet, what: str, **changes: Any) -> None:
    """Changes the rows of an action, notes it in their history, and has all workers look at once."""
    with transaction.atomic():
        # By number: their state may be what they were found by.
        found = model_admin.model._default_manager.filter(pk__in=list(rows.values_list("pk", flat=True)))
        LogEntry.objects.log_actions(request.user.pk, found, CHANGE, f"{what}.")
        count = change(found, **changes)
    model_admin.message_user(request, f"{what}: {count}.", messages.SUCCESS)


# Secrets.


def showing_secret(
    model_admin: admin.ModelAdmin, request: HttpRequest, pk: int, template: str, title: str
) -> HttpResponse:
    """The page that a new secret is shown on, once."""
    row = model_admin.get_object(request, str(pk))
    if row is None or not (model_admin.has_view_permission(request, row) or model_admin.has_add_permission(request)):
        raise PermissionDenied
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": title,
        "row": row,
        "secret": shown_once.take(request),
    }
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "strict-origin"}
    return shown_once.forget_cookie(TemplateResponse(request, template, context, headers=headers))


def to_list(model_admin: admin.ModelAdmin) -> HttpResponseRedirect:
    opts = model_admin.opts
    return HttpResponseRedirect(reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist"))


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
