"""Webhooks of a tenant, for its owners: made, tested, looked at, switched, deleted. A secret is shown once."""

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST, require_safe

from proxy.alerts import deliveries
from proxy.alerts.signature import new_secret
from proxy.alerts.targets import validate_target
from proxy.credentials import seal
from proxy.models import Delivery, Webhook
from tenants import rate_limits, shown_once
from tenants.models import Tenant
from tenants.rate_limits import limited
from tenants.requests import PersonRequest

SHOWN_DELIVERIES = 25
# A tenant has a few; each alert goes to all of them.
MOST_WEBHOOKS = 10

by_tests = limited(rate_limits.TEST_BUTTON, rate_limits.user)


class WebhookForm(forms.Form):
    tenant = forms.ModelChoiceField(Tenant.objects.none(), empty_label=None)
    url = forms.CharField(
        label="Address", max_length=500, help_text="Alerts are posted to it as JSON, e.g. https://hooks.example.com/x."
    )

    def __init__(self, *args: object, tenants: QuerySet[Tenant], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["tenant"].queryset = tenants  # type: ignore[attr-defined]

    def clean_url(self) -> str:
        return validate_target(self.cleaned_data["url"])

    def clean_tenant(self) -> Tenant:
        tenant: Tenant = self.cleaned_data["tenant"]
        if tenant.webhooks.count() >= MOST_WEBHOOKS:
            raise forms.ValidationError(f"{tenant} has {MOST_WEBHOOKS} webhooks. Delete one first.")
        return tenant


def urls() -> list[URLPattern]:
    return [
        path("limits/webhooks/", webhooks, name="webhooks"),
        path("limits/webhooks/new/", limited(rate_limits.NEW_KEY, rate_limits.user)(new), name="webhook_new"),
        path("limits/webhooks/<int:pk>/", show, name="webhook"),
        path("limits/webhooks/<int:pk>/secret/", secret, name="webhook_secret"),
        path("limits/webhooks/<int:pk>/renew/", renew, name="webhook_renew"),
        path("limits/webhooks/<int:pk>/test/", by_tests(test), name="webhook_test"),
        path("limits/webhooks/<int:pk>/switch/", switch, name="webhook_switch"),
        path("limits/webhooks/<int:pk>/delete/", delete, name="webhook_delete"),
    ]


@login_required
@require_safe
def webhooks(request: PersonRequest) -> HttpResponse:
    owned = _owned(request)
    rows = Webhook.objects.filter(tenant__in=owned).select_related("tenant")
    return render(request, "limits/webhooks.html", {"webhooks": rows, "several_tenants": owned.count() > 1})


@login_required
def new(request: PersonRequest) -> HttpResponse:
    form = WebhookForm(request.POST or None, tenants=_owned(request))
    if request.method == "POST" and form.is_valid():
        clear_text = new_secret()
        row = Webhook.objects.create(
            tenant=form.cleaned_data["tenant"],
            url=form.cleaned_data["url"],
            secret_encrypted=seal(clear_text),
            created_by=request.user,
        )
        return shown_once.keep(request, redirect("webhook_secret", row.pk), f"{row.pk} {clear_text}")
    return render(request, "limits/webhook_form.html", {"form": form})


@login_required
@require_safe
def secret(request: PersonRequest, pk: int) -> HttpResponse:
    """The secret, for the first time and the last."""
    row = _webhook(request, pk)
    number, _, clear_text = (shown_once.take(request) or "").partition(" ")
    if number != str(row.pk):
        messages.info(request, "The secret was shown before and is not kept. If it is lost, make a new one.")
        return redirect("webhook", pk)
    response = render(request, "limits/webhook_secret.html", {"webhook": row, "clear_text": clear_text})
    response.headers["Referrer-Policy"] = "strict-origin"
    return shown_once.forget_cookie(response)


@login_required
@require_safe
def show(request: PersonRequest, pk: int) -> HttpResponse:
    row = _webhook(request, pk)
    log = Delivery.objects.filter(webhook=row).select_related("alert").order_by("-created_at")[:SHOWN_DELIVERIES]
    return render(request, "limits/webhook.html", {"webhook": row, "deliveries": log})


@login_required
def renew(request: PersonRequest, pk: int) -> HttpResponse:
    row, clear_text = _webhook(request, pk), new_secret()
    if request.method != "POST":
        return render(request, "limits/webhook_renew.html", {"webhook": row})
    row.secret_encrypted = seal(clear_text)
    row.save(update_fields=["secret_encrypted"])
    return shown_once.keep(request, redirect("webhook_secret", row.pk), f"{row.pk} {clear_text}")


@login_required
@require_POST
def test(request: PersonRequest, pk: int) -> HttpResponse:
    sent = deliveries.send_test(webhook=_webhook(request, pk))
    said = f"The test was sent. {sent.outcome}"
    if sent.state == sent.State.SENT:
        messages.success(request, said)
    else:
        messages.error(request, f"The test did not arrive. {sent.outcome}")
    return redirect("webhook", pk)


@login_required
@require_POST
def switch(request: PersonRequest, pk: int) -> HttpResponse:
    """On or off, as the form says: pressing twice does not switch back."""
    row = _webhook(request, pk)
    row.enabled = request.POST.get("to") == "on"
    row.save(update_fields=["enabled"])
    messages.success(request, "Alerts are sent to it again." if row.enabled else "Nothing is sent to it any more.")
    return redirect("webhook", pk)


@login_required
def delete(request: PersonRequest, pk: int) -> HttpResponse:
    row = _webhook(request, pk)
    if request.method == "POST":
        row.delete()
        messages.success(request, f"The webhook is gone: {row.url}.")
        return redirect("webhooks")
    return render(request, "limits/webhook_delete.html", {"webhook": row})


def _owned(request: PersonRequest) -> QuerySet[Tenant]:
    owned = request.user.tenants_owned()
    if not owned.exists():
        raise PermissionDenied("Only owners of a tenant have webhooks.")
    return owned


def _webhook(request: PersonRequest, pk: int) -> Webhook:
    """Foreign and missing ones answer alike (T1)."""
    rows = Webhook.objects.filter(tenant__in=request.user.tenants_owned()).select_related("tenant", "created_by")
    return get_object_or_404(rows, pk=pk)
