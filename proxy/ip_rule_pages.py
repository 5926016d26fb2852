"""From where the keys of a tenant may be used: for its owners."""

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from proxy import lockouts
from proxy.ip_rule_forms import AddressForm, OwnersIPRuleForm
from proxy.tested_addresses import judgements
from tenants.models import ApiKey, IPRule, Tenant
from tenants.requests import PersonRequest


def urls() -> list[URLPattern]:
    return [
        path("ip-rules/", ip_rules, name="ip_rules"),
        path("ip-rules/new/<int:tenant>/", new, name="ip_rule_new"),
        path("ip-rules/<int:pk>/delete/", delete, name="ip_rule_delete"),
    ]


@login_required
@require_safe
def ip_rules(request: PersonRequest) -> HttpResponse:
    tenants = _governed(request)
    own = lockouts.address_of(request, settings.GATEWAY)
    form = AddressForm(request.GET if "address" in request.GET else None, initial={"address": own})
    found = None
    if form.is_valid():
        keys = ApiKey.objects.filter(tenant__in=tenants, ip_rules__isnull=False).distinct().order_by("prefix")
        found = judgements(form.cleaned_data["address"], tenants, keys, for_all=False)
    context = {
        "tenants": [{"tenant": tenant, "rules": _rules(Tenant.objects.filter(pk=tenant.pk))} for tenant in tenants],
        "form": form,
        "found": found,
    }
    return render(request, "ip_rules/list.html", context)


@login_required
def new(request: PersonRequest, tenant: int) -> HttpResponse:
    owned = get_object_or_404(_governed(request), pk=tenant)
    keys = owned.keys.filter(revoked_at=None).order_by("name")
    wanted = keys.filter(prefix=request.GET.get("key", "")).first()
    address = lockouts.address_of(request, settings.GATEWAY)
    form = OwnersIPRuleForm(
        request.POST or None, tenant=owned, keys=keys, address=address, initial={"key": wanted, "cidr": address or ""}
    )
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, f"{form.instance}: it holds within a second.")
        return redirect("ip_rules")
    return render(request, "ip_rules/form.html", {"form": form, "tenant": owned})


@login_required
def delete(request: PersonRequest, pk: int) -> HttpResponse:
    rule = get_object_or_404(_rules(_governed(request)).filter(by_owners=True), pk=pk)
    if request.method == "POST":
        rule.delete()
        messages.success(request, f"“{rule}” is deleted, within a second.")
        return redirect("ip_rules")
    warnings = lockouts.of_change(lockouts.address_of(request, settings.GATEWAY), without=[rule])
    return render(request, "ip_rules/delete.html", {"rule": rule, "warnings": warnings})


def _governed(request: PersonRequest) -> QuerySet[Tenant]:
    tenants = request.user.tenants_owned()
    if not tenants.exists():
        raise PermissionDenied("Only owners of a tenant make its IP rules.")
    return tenants.order_by("name")


def _rules(tenants: QuerySet[Tenant]) -> QuerySet[IPRule]:
    """Of tenants and their keys. Which networks act as a key is the operator's affair."""
    rules = IPRule.objects.filter(Q(tenant__in=tenants) | Q(key__tenant__in=tenants), acts_as=None)
    return rules.select_related("tenant", "key", "use").order_by("tenant_id", "key__name", "cidr")
