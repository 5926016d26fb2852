"""Records priced anew, from the admin: first what it would do, then a yes."""

from datetime import date
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, Sum
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from proxy.model_names import canonical_pattern
from proxy.rules_watch import price_rows
from tenants import money
from tenants.models import Tenant
from tenants.moments import FIRST_YEAR
from usage.models import DailyUsage, Rerating
from usage.rerating import Effect, preview, rerate

# Records that are priced while somebody waits for a page; more are for the command.
MOST_RECORDS = 50_000


class ReratingForm(forms.ModelForm):
    class Meta:
        model = Rerating
        fields = ("first", "last", "model")
        widgets = {name: forms.DateInput(attrs={"type": "date"}) for name in ("first", "last")}

    def clean_first(self) -> date:
        first: date = self.cleaned_data["first"]
        # The midnight that it begins with is a moment in every time zone.
        if first.year < FIRST_YEAR:
            raise ValidationError(f"Write a day of the year {FIRST_YEAR} or later.")
        return first

    def clean_model(self) -> str:
        return canonical_pattern(self.cleaned_data["model"])


@admin.register(Rerating)
class ReratingAdmin(admin.ModelAdmin):
    purpose = "Records that were priced anew, after prices of the past were put right."
    list_display = ["started_at", "first", "last", "model", "state", "records", "changed", "before", "after"]
    ordering = ["-started_at", "-pk"]
    fields = ["first", "last", "model", "started_at", "finished_at", "records", "changed", "before", "after"]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ReratingForm(request.POST or None)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Price records anew",
            "form": form,
            "currency": settings.GATEWAY.currency,
        }
        if request.method == "POST" and form.is_valid():
            rerating = form.save(commit=False)
            count = records_of(rerating)
            if count > MOST_RECORDS:
                context |= {"too_many": count, "most": MOST_RECORDS, "command": command(rerating)}
            elif request.POST.get("confirmed"):
                return self._rerate(request, rerating)
            else:
                context |= self._preview(rerating)
        return TemplateResponse(request, "admin/usage/rerating/add.html", context)

    def _preview(self, rerating: Rerating) -> dict[str, Any]:
        outcome = preview(rerating, price_rows())
        names = dict(Tenant.objects.filter(pk__in=list(outcome.tenants)).values_list("pk", "name"))
        lines = sorted((names.get(pk, f"number {pk}"), Shown(effect)) for pk, effect in outcome.tenants.items())
        return {"previewed": True, "total": Shown(outcome.total), "lines": lines}

    def _rerate(self, request: HttpRequest, rerating: Rerating) -> HttpResponse:
        for _ in rerate(rerating, price_rows()):
            pass
        text = f"Priced {rerating.changed:,} of {rerating.records:,} records anew."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:usage_rerating_changelist"))

    @admin.display(description="state")
    def state(self, rerating: Rerating) -> str:
        return "done" if rerating.finished_at else "not finished: run it again"

    @admin.display(description="cost before")
    def before(self, rerating: Rerating) -> str:
        return money.shown(rerating.before_nano)

    @admin.display(description="cost after")
    def after(self, rerating: Rerating) -> str:
        return money.shown(rerating.after_nano)


class Shown:
    """An effect as a template writes it."""

    def __init__(self, effect: Effect) -> None:
        self.effect = effect
        self.before, self.after = money.shown(effect.before_nano), money.shown(effect.after_nano)

    def __lt__(self, other: "Shown") -> bool:
        return self.effect.records < other.effect.records


def records_of(rerating: Rerating) -> int:
    """How many there are about, by the sums of their days."""
    days = DailyUsage.objects.filter(day__gte=rerating.first, day__lte=rerating.last)
    if rerating.model:
        days = days.filter(model=rerating.model)
    return days.aggregate(count=Sum("requests"))["count"] or 0


def command(rerating: Rerating) -> str:
    model = f" --model {rerating.model}" if rerating.model else ""
    return f"manage.py rerate --from {rerating.first} --to {rerating.last}{model} --dry-run"
