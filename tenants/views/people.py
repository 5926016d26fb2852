"""The people of a tenant, for its owners: who is in it, with which role, and who is invited."""

import logging

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_POST

from tenants import invitations, memberships, rate_limits
from tenants.auditing import change
from tenants.forms import InvitationForm
from tenants.models import Invitation, Membership, Role, Tenant
from tenants.rate_limits import limited
from tenants.requests import PersonRequest

logger = logging.getLogger(__name__)


def urls() -> list[URLPattern]:
    return [
        path("people/", people, name="people"),
        path("people/invite/", invite, name="invite"),
        path("people/<int:pk>/role/", change_role, name="change_role"),
        path("people/<int:pk>/remove/", remove, name="remove_person"),
        path("people/invitations/<int:pk>/withdraw/", withdraw, name="withdraw_invitation"),
    ]


@login_required
def people(request: PersonRequest) -> HttpResponse:
    people = Membership.objects.select_related("user").order_by("user__username")
    invited = Invitation.objects.open().select_related("invited_by").order_by("-created_at")
    tenants = _governed(request).prefetch_related(Prefetch("memberships", people), Prefetch("invitations", invited))
    context = {
        "tenants": [
            {"tenant": tenant, "memberships": tenant.memberships.all(), "invitations": tenant.invitations.all()}
            for tenant in tenants
        ],
        "roles": Role.choices,
    }
    return render(request, "tenants/people/list.html", context)


@login_required
@limited(rate_limits.MAIL, rate_limits.user)
def invite(request: PersonRequest) -> HttpResponse:
    tenants = _governed(request)
    form = InvitationForm(request.POST or None, tenants=tenants, initial={"tenant": request.GET.get("tenant")})
    if request.method != "POST" or not form.is_valid():
        return render(request, "tenants/people/invite.html", {"form": form})
    cleaned = form.cleaned_data
    new = invitations.invite(cleaned["tenant"], cleaned["email"], cleaned["role"], request.user)
    sent = False
    if settings.EMAIL_IS_SENT:
        try:
            invitations.send(new)
            sent = True
        except OSError as exc:
            logger.warning("The invitation could not be sent: %s", exc)
    if sent:
        messages.success(request, f"The invitation is on its way to {new.row.email}.")
        return redirect("people")
    # The answer to the form, once: it is in no address and no session.
    context = {"invitation": new.row, "link": invitations.hand_over(new), "failed": settings.EMAIL_IS_SENT}
    return render(request, "tenants/people/link.html", context)


@login_required
@require_POST
def change_role(request: PersonRequest, pk: int) -> HttpResponse:
    """Asks first where it switches keys off, or takes from oneself what this page needs."""
    role = request.POST.get("role")
    if role not in Role.values:
        raise PermissionDenied("There is no such role.")
    membership = _membership(request, pk)
    keys = memberships.keys_a_role_switches_off(membership, role).count()
    gives_up = membership.user_id == request.user.pk and membership.role == Role.OWNER != role
    if (keys or gives_up) and "confirmed" not in request.POST:
        context = {"membership": membership, "role": role, "keys": keys, "gives_up": gives_up}
        return render(request, "tenants/people/change_role.html", context)
    try:
        off = memberships.change_role(membership, role)
    except (memberships.LastOwner, memberships.NotThere) as refused:
        return _told(request, refused)
    messages.success(
        request,
        f"{membership.user} is now {role} of {membership.tenant}." + (f" Keys switched off: {off}." if off else ""),
    )
    return _back(request)


@login_required
def remove(request: PersonRequest, pk: int) -> HttpResponse:
    membership = _membership(request, pk)
    if request.method == "POST":
        try:
            count = memberships.remove(membership)
        except (memberships.LastOwner, memberships.NotThere) as refused:
            return _told(request, refused)
        messages.success(request, f"{membership.user} is out of {membership.tenant}. Keys revoked: {count}.")
        return _back(request)
    context = {"membership": membership, "keys": memberships.keys_of(membership).filter(revoked_at=None).count()}
    return render(request, "tenants/people/remove.html", context)


@login_required
@require_POST
def withdraw(request: PersonRequest, pk: int) -> HttpResponse:
    rows = Invitation.objects.open().filter(pk=pk, tenant__in=_governed(request))
    invitation = get_object_or_404(rows)
    change(rows, withdrawn_at=timezone.now())
    messages.success(request, f"The invitation of {invitation.email} is withdrawn; its link does not work any more.")
    return redirect("people")


def _governed(request: PersonRequest) -> QuerySet[Tenant]:
    """Tenants whose people one may manage: one's own; superusers all."""
    tenants = Tenant.objects.current() if request.user.is_superuser else request.user.tenants_owned()
    if not tenants.exists():
        raise PermissionDenied("Only owners of a tenant manage its people.")
    return tenants


def _back(request: PersonRequest) -> HttpResponse:
    """To the list, which is not theirs any more if they have just given it up."""
    return redirect("people" if request.user.is_superuser or request.user.tenants_owned().exists() else "home")


def _told(request: PersonRequest, refused: PermissionDenied) -> HttpResponse:
    messages.error(request, str(refused))
    return redirect("people")


def _membership(request: PersonRequest, pk: int) -> Membership:
    rows = Membership.objects.select_related("tenant", "user").filter(tenant__in=_governed(request))
    return get_object_or_404(rows, pk=pk)
