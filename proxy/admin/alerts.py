"""Webhooks of the installation and of tenants, and what was told to whom."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString

from proxy.alerts import deliveries
from proxy.alerts.signature import new_secret
from proxy.alerts.targets import validate_target
from proxy.credentials import seal
from proxy.models import Delivery, LimitAlert, Webhook
from tenants import rate_limits, shown_once
from tenants.administering import LargeTableAdmin, apply, badge, showing_secret, to_list

TONES = {"pending": "warn", "sent": "ok", "failed": "bad"}


class WebhookForm(forms.ModelForm):
    def clean_url(self) -> str:
        return validate_target(self.cleaned_data["url"])


@admin.register(Webhook)
class WebhookAdmin(admin.ModelAdmin):
    """Adding shows the secret once; a new one takes the place of the old."""

    purpose = "Addresses that are told, by signed posts, when 80 % and 100 % of a limit are used."
    form = WebhookForm
    change_form_template = "admin/proxy/webhook/change_form.html"
    list_display = ["url", "whose", "state", "last_delivery", "created_at", "created_by"]
    list_filter = ["enabled"]
    list_select_related = ["tenant", "created_by"]
    search_fields = ["url", "tenant__name"]
    search_help_text = "Address or tenant"
    autocomplete_fields = ["tenant"]
    fields = ["tenant", "url", "enabled", "created_at", "created_by"]
    readonly_fields = ["created_at", "created_by"]
    ordering = ["-id"]
    actions = ["switch_on", "switch_off"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        test = rate_limits.limited(rate_limits.TEST_BUTTON, rate_limits.user)(self.test)
        return [
            path("<int:pk>/test/", view(test), name="proxy_webhook_test"),
            path("<int:pk>/renew/", view(self.renew), name="proxy_webhook_renew"),
            path("<int:pk>/secret/", view(self.show_secret), name="proxy_webhook_secret"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        last = Delivery.objects.filter(webhook=OuterRef("pk")).order_by("-created_at").values("state")[:1]
        return super().get_queryset(request).annotate(last_state=Subquery(last))

    def get_fields(self, request: HttpRequest, obj: Webhook | None = None) -> Any:
        return self.fields if obj else ["tenant", "url", "enabled"]

    def save_model(self, request: HttpRequest, obj: Webhook, form: forms.ModelForm, change: bool) -> None:
        if not change:
            obj.created_by = request.user
            # For response_add, which hands it on.
            request.new_secret = new_secret()  # type: ignore[attr-defined]
            obj.secret_encrypted = seal(request.new_secret)  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def response_add(self, request: HttpRequest, obj: Webhook, post_url_continue: str | None = None) -> HttpResponse:
        return self._hand_out(request, obj, request.new_secret)  # type: ignore[attr-defined]

    def renew(self, request: HttpRequest, pk: int) -> HttpResponse:
        row = self._changeable(request, pk)
        if request.method != "POST":
            title = {"title": "A new secret for this webhook?", "row": row, "opts": self.opts}
            context = {**self.admin_site.each_context(request), **title}
            return TemplateResponse(request, "admin/proxy/webhook/renew.html", context)
        secret = new_secret()
        row.secret_encrypted = seal(secret)
        row.save(update_fields=["secret_encrypted"])
        self.log_change(request, row, "New secret.")
        return self._hand_out(request, row, secret)

    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        if request.method != "POST":
            raise PermissionDenied
        row = self._changeable(request, pk)
        sent = deliveries.send_test(webhook=row)
        arrived = sent.state == sent.State.SENT
        said = "The test was sent. " if arrived else "The test did not arrive. "
        self.message_user(request, said + sent.outcome, messages.SUCCESS if arrived else messages.ERROR)
        return HttpResponseRedirect(reverse("admin:proxy_webhook_change", args=[pk]))

    def show_secret(self, request: HttpRequest, pk: int) -> HttpResponse:
        return showing_secret(self, request, pk, "admin/proxy/webhook/secret.html", "The secret of the webhook")

    def _hand_out(self, request: HttpRequest, row: Webhook, secret: str) -> HttpResponse:
        page = HttpResponseRedirect(reverse("admin:proxy_webhook_secret", args=[row.pk]))
        return shown_once.keep(request, page, secret)

    def _changeable(self, request: HttpRequest, pk: int) -> Webhook:
        if not self.has_change_permission(request):
            raise PermissionDenied
        row = self.get_object(request, str(pk))
        if row is None:
            raise Http404
        return row

    @admin.display(description="whose alerts", ordering="tenant__name")
    def whose(self, hook: Webhook) -> str:
        return str(hook.tenant or "all tenants")

    @admin.display(description="state", ordering="enabled")
    def state(self, hook: Webhook) -> SafeString:
        return badge("on", "ok") if hook.enabled else badge("off", "off")

    @admin.display(description="last delivery")
    def last_delivery(self, hook: Any) -> SafeString | str:
        return badge(Delivery.State(hook.last_state).label, TONES[hook.last_state]) if hook.last_state else "none yet"

    @admin.action(description="Switch on selected webhooks", permissions=["change"])
    def switch_on(self, request: HttpRequest, queryset: QuerySet) -> None:
        apply(self, request, queryset.filter(enabled=False), "Switched on", enabled=True)

    @admin.action(description="Switch off selected webhooks", permissions=["change"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet) -> None:
        apply(self, request, queryset.filter(enabled=True), "Switched off", enabled=False)


@admin.register(Delivery)
class DeliveryAdmin(LargeTableAdmin):
    purpose = "What was sent of alerts, to whom, and what became of it."
    change_list_template = "admin/proxy/delivery/change_list.html"
    list_display = ["created_at", "receiver", "what", "shown_state", "attempts", "outcome", "finished_at"]
    list_filter = ["state", "created_at"]
    list_select_related = ["alert", "webhook"]
    search_fields = ["email", "webhook__url"]
    search_help_text = "Address"
    ordering = ["-created_at"]
    fields = ["receiver", "what", "shown_state", "attempts", "outcome", "created_at", "due_at", "finished_at"]

    def get_urls(self) -> list[URLPattern]:
        test = rate_limits.limited(rate_limits.MAIL, rate_limits.user)(self.test_mail)
        own = path("test-mail/", self.admin_site.admin_view(test), name="proxy_delivery_test_mail")
        return [own, *super().get_urls()]

    def test_mail(self, request: HttpRequest) -> HttpResponse:
        """To whoever presses the button."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not request.user.email:
            self.message_user(request, "Your account has no e-mail address.", messages.ERROR)
            return to_list(self)
        sent = deliveries.send_test(email=request.user.email)
        arrived = sent.state == sent.State.SENT
        said = f"The test to {sent.email} {'is on its way' if arrived else 'could not be sent'}. {sent.outcome}"
        self.message_user(request, said, messages.SUCCESS if arrived else messages.ERROR)
        return to_list(self)

    @admin.display(description="what")
    def what(self, delivery: Delivery) -> str:
        return str(delivery.alert or "a test")

    @admin.display(description="state", ordering="state")
    def shown_state(self, delivery: Delivery) -> SafeString:
        return badge(delivery.get_state_display(), TONES[delivery.state])


@admin.register(LimitAlert)
class LimitAlertAdmin(LargeTableAdmin):
    purpose = "Which limits were used to 80 % and 100 %, in which window. Each is told once."
    list_display = ["created_at", "threshold_shown", "text", "tenant", "window_start", "window_end"]
    list_filter = ["threshold", "created_at"]
    list_select_related = ["tenant"]
    search_fields = ["tenant__name", "counted_for"]
    search_help_text = "Tenant"
    ordering = ["-id"]
    fields = ["threshold_shown", "text", "tenant", "limit", "window_start", "window_end", "created_at"]

    @admin.display(description="used", ordering="threshold")
    def threshold_shown(self, alert: LimitAlert) -> SafeString:
        return badge(f"{alert.threshold} %", "bad" if alert.threshold >= 100 else "warn")

    @admin.display(description="of")
    def text(self, alert: LimitAlert) -> str:
        return str(alert.body.get("limit", {}).get("text", ""))
