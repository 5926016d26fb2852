"""From where calls and people may come."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.safestring import SafeString

from proxy import lockouts
from proxy.ip_rule_forms import AddressForm, IPRuleForm
from proxy.tested_addresses import judgements
from tenants.administering import badge, moment
from tenants.models import ApiKey, IPRule, Tenant


@admin.register(IPRule)
class IPRuleAdmin(admin.ModelAdmin):
    purpose = (
        "From which networks calls and people may come. The longest prefix wins; one allowing rule denies the rest."
    )
    form = IPRuleForm
    change_list_template = "admin/ip_rules/change_list.html"
    list_display = ["cidr", "shown_action", "scope", "acts_as", "state", "hits", "last_hit", "expires_at", "note"]
    list_filter = [
        "action", ("tenant", admin.EmptyFieldListFilter), "by_owners", ("acts_as", admin.EmptyFieldListFilter)
    ]  # fmt: skip
    list_select_related = ["tenant", "key", "acts_as", "use"]
    search_fields = ["cidr", "note", "tenant__name", "key__name", "key__prefix"]
    search_help_text = "Network, note, tenant or key"
    autocomplete_fields = ["tenant", "key", "acts_as"]
    fieldsets = [
        (None, {"fields": ["cidr", "action", "expires_at", "note"]}),
        (
            "For whom",
            {"fields": ["tenant", "key", "by_owners"], "description": "Leave all empty for a rule that holds for all."},
        ),
        ("Calls without a key", {"fields": ["acts_as"]}),
        ("If it shuts somebody out", {"fields": ["confirmed"]}),
    ]
    ordering = ["-id"]

    def get_form(self, request: HttpRequest, obj: IPRule | None = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        return type(form.__name__, (form,), {"address": lockouts.address_of(request, settings.GATEWAY)})

    def get_deleted_objects(
        self, objs: Sequence[IPRule], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """What the pages that ask before rules are deleted say: first of all, whom that shuts out or lets in."""
        named, *others = super().get_deleted_objects(objs, request)
        warnings = lockouts.of_change(lockouts.address_of(request, settings.GATEWAY), without=objs)
        return [*[f"Beware: {warning}" for warning in warnings], *named], *others

    def get_urls(self) -> list[URLPattern]:
        return [path("test/", self.admin_site.admin_view(self.test), name="tenants_iprule_test"), *super().get_urls()]

    def test(self, request: HttpRequest) -> HttpResponse:
        """Which rule decides about an address, in each scope."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        own = lockouts.address_of(request, settings.GATEWAY)
        form = AddressForm(request.GET if "address" in request.GET else None, initial={"address": own})
        found = None
        if form.is_valid():
            keys = ApiKey.objects.filter(ip_rules__isnull=False).distinct().order_by("prefix")
            found = judgements(form.cleaned_data["address"], Tenant.objects.order_by("name"), keys, for_all=True)
        context = {
            **self.admin_site.each_context(request), "opts": self.opts, "title": "Test an address",
            "form": form, "found": found,
        }  # fmt: skip
        return TemplateResponse(request, "admin/ip_rules/test.html", context)

    @admin.display(description="action", ordering="action")
    def shown_action(self, rule: IPRule) -> SafeString:
        return badge(rule.action, "ok" if rule.action == IPRule.Action.ALLOW else "bad")

    @admin.display(description="for")
    def scope(self, rule: IPRule) -> str:
        return str(rule.tenant or rule.key or "all")

    @admin.display(description="state")
    def state(self, rule: IPRule) -> SafeString:
        over = rule.expires_at is not None and rule.expires_at <= timezone.now()
        return badge("expired", "off") if over else badge("in force", "ok")

    @admin.display(description="hits", ordering="use__hits")
    def hits(self, rule: IPRule) -> int:
        """How often it decided about a call or a page."""
        return rule.use.hits if hasattr(rule, "use") else 0

    @admin.display(description="last hit", ordering="use__last_at")
    def last_hit(self, rule: IPRule) -> str:
        return moment(rule.use.last_at) if hasattr(rule, "use") else ""
