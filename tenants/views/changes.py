"""Who changed what in a tenant, for its owners."""

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.apps import apps
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_safe

from tenants import rate_limits
from tenants.changes import ACTIONS, COLUMNS, OWNERS_SEE, kinds, pages, people_of, rows, shown_to_owner, visible_to
from tenants.models import AuditEntry, Membership, Tenant, User
from tenants.rate_limits import limited
from tenants.requests import PersonRequest
from tenants.spreadsheets import csv_answer

ON_A_PAGE = 50
DAY = forms.DateInput(attrs={"type": "date"})
# Midnights of those are moments in every time zone.
DAYS = [MinValueValidator(date(2000, 1, 1)), MaxValueValidator(date(2999, 12, 31))]

by_exports = limited(rate_limits.EXPORT, rate_limits.user, "GET")


def urls() -> list[URLPattern]:
    return [
        path("changes/", changes, name="changes"),
        path("changes/export/", export, name="changes_export"),
    ]


class Filters(forms.Form):
    tenant = forms.ModelChoiceField(Tenant.objects.none(), required=False, empty_label="All")
    kind = forms.ChoiceField(label="What", required=False)
    action = forms.ChoiceField(required=False, choices=[("", "All"), *((word, word) for word in ACTIONS.values())])
    who = forms.ModelChoiceField(User.objects.none(), required=False, empty_label="All")
    since = forms.DateField(label="From", required=False, widget=DAY, validators=DAYS)
    until = forms.DateField(label="To", required=False, widget=DAY, validators=DAYS)
    # The last entry of the page before.
    before = forms.IntegerField(required=False, min_value=1, max_value=2**63 - 1, widget=forms.HiddenInput)

    def __init__(self, *args: Any, tenants: QuerySet[Tenant], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["tenant"].queryset = tenants
        if len(tenants) < 2:
            del self.fields["tenant"]
        people = User.objects.filter(memberships__tenant__in=tenants).distinct()
        self.fields["who"].queryset = people.order_by("username")
        names = [(label, str(apps.get_model(label)._meta.verbose_name)) for label in OWNERS_SEE]
        self.fields["kind"].choices = [("", "All"), *sorted(names, key=lambda choice: choice[1].lower())]

    def of(self, entries: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        given = self.cleaned_data
        if given.get("tenant"):
            entries = entries.filter(tenant=given["tenant"])
        if given["kind"]:
            entries = entries.filter(content_type__in=kinds([given["kind"]]))
        if given["action"]:
            entries = entries.filter(action__in=[code for code, word in ACTIONS.items() if word == given["action"]])
        if given["who"]:
            # Not of another tenant, where they may be an administrator whose name is not told.
            own = Membership.objects.filter(user=given["who"], tenant=OuterRef("tenant"))
            entries = entries.filter(Exists(own), actor=given["who"])
        if given["since"]:
            entries = entries.filter(timestamp__gte=_midnight(given["since"]))
        if given["until"]:
            entries = entries.filter(timestamp__lt=_midnight(given["until"] + timedelta(days=1)))
        if given["before"]:
            entries = entries.filter(pk__lt=given["before"])
        return entries


@login_required
@require_safe
def changes(request: PersonRequest) -> HttpResponse:
    form, entries = _asked_for(request)
    found = list(entries[: ON_A_PAGE + 1])
    people = people_of(request.user)
    context = {
        "form": form,
        "changes": [shown_to_owner(entry, people) for entry in found[:ON_A_PAGE]],
        "several_tenants": "tenant" in form.fields,
        "is_filtered": any(form.cleaned_data.values()) if form.is_valid() else True,
        "query": _query(request),
        "older": _query(request, before=found[ON_A_PAGE - 1].pk) if len(found) > ON_A_PAGE else "",
        "zone": timezone.get_current_timezone_name(),
    }
    return render(request, "tenants/changes/list.html", context)


@login_required
@by_exports
@require_GET
def export(request: PersonRequest) -> HttpResponseBase:
    form, entries = _asked_for(request)
    if not form.is_valid():
        return redirect(f"{reverse('changes')}?{_query(request)}")
    people = people_of(request.user)
    shown = (shown_to_owner(entry, people) for entry in pages(entries))
    return csv_answer(request, "changes", COLUMNS, rows(shown))


def _asked_for(request: PersonRequest) -> tuple[Filters, QuerySet[AuditEntry]]:
    tenants = request.user.tenants_owned()
    if not tenants:
        raise PermissionDenied("Owners see what was changed in their tenant. Administrators find all in the admin.")
    form = Filters(request.GET, tenants=tenants)
    entries = visible_to(request.user).select_related("actor", "tenant").order_by("-pk")
    return form, form.of(entries) if form.is_valid() else entries.none()


def _query(request: PersonRequest, **more: int) -> str:
    """The filters as they were asked for, and another page. Names that are no filters are not passed on."""
    query = request.GET.copy()
    for name in set(query) - set(Filters.base_fields) | {"before"}:
        query.pop(name, None)
    query.update(more)
    return query.urlencode()


def _midnight(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time.min))
