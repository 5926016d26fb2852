"""Limits for the people they hold for: what is used, what is left; and those that the owners of a tenant set."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST, require_safe

from proxy.alerts import deliveries
from proxy.limits.states import Count, LimitState, LimitStates, states_of
from tenants import rate_limits
from tenants.limit_forms import OwnersLimitForm, limits_seen
from tenants.models import ApiKey, Limit, Membership, Role, Tenant, User
from tenants.rate_limits import limited
from tenants.requests import PersonRequest

# Bars on the home page, those of which least is left; all of them are one click away.
SOME_BARS = 6
# Limits of one tenant on its owners' page; the pages of the keys have all.
MOST_ROWS = 500


@dataclass(frozen=True, slots=True)
class TenantLimits:
    tenant: Tenant
    may_change: bool
    states: LimitStates
    shared: list[LimitState]  # that each key or address has a counter of its own for
    ends_early: bool  # whether there are more


def urls(count: Count) -> list[URLPattern]:
    """`count`: what the limits of this process have counted."""
    given = {"count": count}
    return [
        path("limits/", limits, given, name="limits"),
        path("limits/new/<int:tenant>/", new, name="limit_new"),
        path("limits/<int:pk>/edit/", edit, name="limit_edit"),
        path("limits/<int:pk>/delete/", delete, name="limit_delete"),
        path(
            "limits/test-mail/",
            limited(rate_limits.MAIL, rate_limits.user)(test_mail),
            name="limits_test_mail",
        ),
    ]


@login_required
@require_safe
def limits(request: PersonRequest, count: Count) -> HttpResponse:
    return render(request, "limits/list.html", {"tenants": list(limits_of_tenants(request.user, count))})


@login_required
@transaction.atomic
def new(request: PersonRequest, tenant: int) -> HttpResponse:
    owned = get_object_or_404(request.user.tenants_owned(), pk=tenant)
    form = OwnersLimitForm(request.POST or None, tenant=owned, initial={"whom": _wanted(request, owned)})
    if request.method == "POST" and form.is_valid():
        row = form.save()
        messages.success(request, f"{row}: it holds within a second.")
        return redirect("limits")
    context = {"form": form, "tenant": owned, "title": "New limit", "action": "Set the limit"}
    return render(request, "limits/form.html", context)


@login_required
@transaction.atomic
def edit(request: PersonRequest, pk: int) -> HttpResponse:
    row = _own(request, pk, lock=request.method == "POST")
    assert row.managed_by is not None
    form = OwnersLimitForm(request.POST or None, instance=row, tenant=row.managed_by)
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, "Saved. It holds within a second.")
        return redirect("limits")
    context = {"form": form, "tenant": row.managed_by, "title": f"Change the limit for {row.subject}", "action": "Save"}
    return render(request, "limits/form.html", {**context, "limit": row})


@login_required
def delete(request: PersonRequest, pk: int) -> HttpResponse:
    row = _own(request, pk)
    if request.method == "POST":
        said = str(row)
        row.delete()
        messages.success(request, f"The limit is gone: {said}. What administrators set goes on to hold.")
        return redirect("limits")
    return render(request, "limits/delete.html", {"limit": row})


@login_required
@require_POST
def test_mail(request: PersonRequest) -> HttpResponse:
    """To oneself: whoever presses it sees whether the gateway's mail arrives."""
    if not request.user.tenants_owned().exists() and not request.user.is_staff:
        raise PermissionDenied("Only owners of a tenant and administrators test the mail.")
    if not request.user.email:
        messages.error(request, "Your account has no e-mail address. Add one under “Account and security”.")
        return redirect("limits")
    sent = deliveries.send_test(email=request.user.email)
    if sent.state == sent.State.SENT:
        messages.success(request, f"A test is on its way to {sent.email}. {sent.outcome}")
    else:
        messages.error(request, f"The test could not be sent to {sent.email}. {sent.outcome}")
    return redirect("limits")


def limits_of_tenants(user: User, count: Count, as_role: str = "") -> Iterable[TenantLimits]:
    """Of each tenant that somebody is in. `as_role`: only what somebody with this role would see."""
    memberships = Membership.objects.filter(user=user, tenant__archived_at=None).select_related("tenant")
    for membership in memberships.order_by("tenant__name"):
        rows = list(limits_seen(user, membership.tenant, as_role or membership.role)[: MOST_ROWS + 1])
        states = states_of(rows[:MOST_ROWS], count)
        own = [state for state in states.limits if state.limit.scope not in ("default", "address")]
        shared = [state for state in states.limits if state.limit.scope in ("default", "address")]
        own.sort(key=lambda state: ("tenant", "user", "key").index(state.limit.scope))
        may_change = membership.role == Role.OWNER
        yield TenantLimits(membership.tenant, may_change, replace(states, limits=own), shared, len(rows) > MOST_ROWS)


def bars_of(user: User, count: Count) -> list[LimitState]:
    """For the home page: of the limits that hold for somebody themself, those of which least is left."""
    found = [state for tenant in limits_of_tenants(user, count, Role.MEMBER) for state in tenant.states.limits]
    return sorted((state for state in found if state.used is not None), key=lambda state: -state.percent)[:SOME_BARS]


def _own(request: PersonRequest, pk: int, *, lock: bool = False) -> Limit:
    """Those that administrators set are not to be changed here, and answer like those that are not there (T1)."""
    rows = Limit.objects.select_related("tenant", "user", "key", "managed_by")
    if lock:
        rows = rows.select_for_update(of=("self",))
    return get_object_or_404(rows, pk=pk, managed_by__in=request.user.tenants_owned())


def _wanted(request: PersonRequest, tenant: Tenant) -> str:
    prefix = request.GET.get("key")
    if not prefix:
        return ""
    key = ApiKey.objects.filter(tenant=tenant, prefix=prefix).first()
    if key is None:
        raise Http404
    return f"key:{key.pk}"
