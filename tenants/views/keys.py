"""Keys: the list, making one, what it may do, its secret (once), its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.utils.http import urlencode
from django.views.decorators.http import require_safe

from tenants import authority, rate_limits, shown_once
from tenants.authority import AreWithin, authority_in, may_undo
from tenants.forms import KeyForm, RotationForm
from tenants.keys import PREFIX_LENGTH, RotatedMeanwhile, create_key, rotate_key, rotation_of
from tenants.models import ApiKey, Authority, Role, User
from tenants.rate_limits import limited
from tenants.requests import PersonRequest
from tenants.snippets import api_url, snippets

ON_A_PAGE = 200
# Stands in examples where the secret is not known any more.
PLACEHOLDER = "YOUR_KEY"

by_new_keys = limited(rate_limits.NEW_KEY, rate_limits.user)


@dataclass(frozen=True, slots=True)
class Known:
    """What these pages need to know and tenants does not: handed in by gateway_site/urls.py."""

    model_names: Callable[[], list[str]]
    example_for: Callable[[ApiKey], str]  # a model that a key may use, or ""
    facts_of: Callable[[ApiKey], object]
    are_within: AreWithin


def urls(known: Known) -> list[URLPattern]:
    given = {"known": known}
    return [
        path("keys/", keys, name="keys"),
        path("keys/new/", new, given, name="key_new"),
        path("keys/<str:prefix>/", show, given, name="key"),
        path("keys/<str:prefix>/secret/", secret, given, name="key_secret"),
        path("keys/<str:prefix>/edit/", edit, given, name="key_edit"),
        path("keys/<str:prefix>/rotate/", rotate, name="key_rotate"),
        path("keys/<str:prefix>/switch/", switch, name="key_switch"),
        path("keys/<str:prefix>/revoke/", revoke, name="key_revoke"),
    ]


@login_required
@require_safe
def keys(request: PersonRequest) -> HttpResponse:
    _allowed_to_have_keys(request)
    visible = ApiKey.objects.visible_to(request.user).select_related("tenant", "user", "last_used")
    shows_revoked = "revoked" in request.GET
    listed = visible.filter(revoked_at__isnull=not shows_revoked).order_by("-pk")
    wanted = request.GET.get("q", "").replace("\0", "").strip()[:100]
    if wanted:
        prefix = wanted.removeprefix("ogw_")[:PREFIX_LENGTH]
        listed = listed.filter(Q(name__icontains=wanted) | Q(user__username__icontains=wanted) | Q(prefix=prefix))
    before = request.GET.get("before", "")
    if before.isascii() and before.isdigit() and len(before) <= 18:
        listed = listed.filter(pk__lt=int(before))
    found = list(listed[: ON_A_PAGE + 1])
    query = {**({"revoked": "1"} if shows_revoked else {}), **({"q": wanted} if wanted else {})}
    context = {
        "keys": found[:ON_A_PAGE],
        "older": urlencode({**query, "before": found[ON_A_PAGE - 1].pk}) if len(found) > ON_A_PAGE else "",
        "wanted": wanted,
        # Few are looked through faster than searched.
        "is_searched": bool(wanted or before or len(found) > ON_A_PAGE),
        "shows_revoked": shows_revoked,
        "any_revoked": visible.exclude(revoked_at=None).exists(),
        "several_tenants": request.user.tenants_for_keys().count() > 1,
        "owned": request.user.tenants_owned().count(),
    }
    return render(request, "tenants/keys/list.html", context)


@login_required
@by_new_keys
def new(request: PersonRequest, known: Known) -> HttpResponse:
    _allowed_to_have_keys(request)
    tenants = request.user.tenants_for_keys().filter(enabled=True)
    if not tenants.exists():
        raise PermissionDenied("Your tenant is switched off: its keys would not work. Ask an administrator.")
    form = KeyForm(
        request.POST or None,
        names=known.model_names(),
        tenants=tenants,
        owned=request.user.tenants_owned(),
        are_within=known.are_within,
    )
    if request.method == "POST" and form.is_valid():
        tenant = form.cleaned_data["tenant"]
        form.by = authority_in(request.user, tenant.pk)
        whose = {"service": None, "person": form.cleaned_data.get("person")}
        made = create_key(
            tenant,
            user=whose.get(form.cleaned_data.get("whose", "mine"), request.user),
            created_by=request.user,
            **form.columns(),
        )
        return shown_once.keep(request, redirect("key_secret", made.row.prefix), made.clear_text)
    return render(request, "tenants/keys/form.html", {"form": form, "title": "New key", "action": "Make the key"})


@login_required
@require_safe
def secret(request: PersonRequest, known: Known, prefix: str) -> HttpResponse:
    """The clear text, for the first time and the last."""
    key = _key(request, prefix)
    clear_text = shown_once.take(request)
    if clear_text is None or f"_{key.prefix}_" not in clear_text:
        messages.info(request, "The secret was shown before and is not kept. If it is lost, rotate the key.")
        return redirect("key", prefix)
    context = {
        "key": key,
        "clear_text": clear_text,
        **_examples(key, clear_text, known),
    }
    response = render(request, "tenants/keys/secret.html", context)
    response.headers["Referrer-Policy"] = "strict-origin"
    return shown_once.forget_cookie(response)


@login_required
@require_safe
def show(request: PersonRequest, known: Known, prefix: str) -> HttpResponse:
    key = _key(request, prefix)
    context = {
        "key": key,
        "facts": known.facts_of(key),
        "rules": key.ip_rules.order_by("cidr"),
        "may_limit": not key.revoked_at and request.user.tenants_owned().filter(pk=key.tenant_id).exists(),
        "may_switch_on": may_undo(authority_in(request.user, key.tenant_id), key.switched_off_by),
        "of_viewer": key.user is not None
        and key.user.memberships.filter(tenant=key.tenant_id, role=Role.VIEWER).exists(),
        "may_rotate": not key.imported and _may_know_secret(request.user, key),
        **_examples(key, PLACEHOLDER, known),
    }
    return render(request, "tenants/keys/key.html", context)


@login_required
@transaction.atomic
def edit(request: PersonRequest, known: Known, prefix: str) -> HttpResponse:
    key = _changeable_key(request, prefix)
    form = KeyForm(
        request.POST or None,
        names=known.model_names(),
        tenants=request.user.tenants_for_keys(),
        owned=request.user.tenants_owned(),
        key=key,
        is_bound=key.has_rights_of_superusers and not request.user.is_superuser,
        by=authority_in(request.user, key.tenant_id),
        are_within=known.are_within,
    )
    if request.method == "POST" and form.is_valid():
        columns = form.columns()
        for name, value in columns.items():
            setattr(key, name, value)
        key.save(update_fields=list(columns))
        messages.success(request, "Saved. It holds within a second.")
        return redirect("key", prefix)
    context = {"form": form, "key": key, "title": f"Edit {key.name}", "action": "Save"}
    return render(request, "tenants/keys/form.html", context)


@login_required
@by_new_keys
def rotate(request: PersonRequest, prefix: str) -> HttpResponse:
    key = _changeable_key(request, prefix)
    if key.imported:
        raise PermissionDenied("This key was brought along from elsewhere. Make a new one instead, and revoke this.")
    if not _may_know_secret(request.user, key):
        raise PermissionDenied(f"This key has rights that were given to {key.user}, who alone may rotate it.")
    form = RotationForm(request.POST or None, initial={"version": rotation_of(key)})
    if request.method == "POST" and form.is_valid():
        try:
            made = rotate_key(key, form.chosen, after=form.cleaned_data["version"])
        except RotatedMeanwhile:
            messages.warning(request, "The key was rotated just now, and not once more: look before you do it again.")
            return redirect("key_secret", prefix)
        return shown_once.keep(request, redirect("key_secret", prefix), made.clear_text)
    return render(request, "tenants/keys/rotate.html", {"form": form, "key": key})


@login_required
@transaction.atomic
def switch(request: PersonRequest, prefix: str) -> HttpResponse:
    """On or off, as the form says: pressing twice does not switch back. Asks before it is off."""
    key = _changeable_key(request, prefix)
    if request.method != "POST":
        return render(request, "tenants/keys/switch_off.html", {"key": key}) if key.enabled else redirect("key", prefix)
    if not authority.switch(key, on=request.POST.get("to") == "on", by=authority_in(request.user, key.tenant_id)):
        whom = Authority(key.switched_off_by or Authority.ADMINISTRATOR).label
        raise PermissionDenied(f"This key was switched off by {whom}, who can switch it on again.")
    key.save(update_fields=["enabled", "switched_off_by"])
    messages.success(request, "The key works again." if key.enabled else "The key is off; calls in flight are cut.")
    return redirect("key", prefix)


@login_required
def revoke(request: PersonRequest, prefix: str) -> HttpResponse:
    key = _changeable_key(request, prefix)
    if request.method == "POST":
        key.revoke()
        messages.success(request, f"“{key.name}” is revoked; calls in flight are cut. Its usage stays.")
        return redirect("keys")
    return render(request, "tenants/keys/revoke.html", {"key": key})


def _key(request: PersonRequest, prefix: str, *, lock: bool = False) -> ApiKey:
    """Foreign and missing ones answer alike (T1)."""
    visible = ApiKey.objects.visible_to(request.user).select_related("tenant", "user", "last_used", "created_by")
    return get_object_or_404(visible.select_for_update(of=("self",)) if lock else visible, prefix=prefix)


def _changeable_key(request: PersonRequest, prefix: str) -> ApiKey:
    # Locked where it is about to be changed: what somebody above decides meanwhile must hold.
    key = _key(request, prefix, lock=request.method == "POST" and connection.in_atomic_block)
    if key.revoked_at:
        raise PermissionDenied("This key is revoked, which is for ever. Make a new one.")
    return key


def _may_know_secret(user: User, key: ApiKey) -> bool:
    """Whoever knows a secret has the key's rights: those of superusers were given to one person, or to the tenant."""
    return user.is_superuser or not key.has_rights_of_superusers or key.user_id in (None, user.pk)


def _allowed_to_have_keys(request: PersonRequest) -> None:
    if not request.user.tenants_for_keys().exists():
        raise PermissionDenied("You are in no tenant, or only look at its usage. Ask an owner to make you a member.")


def _examples(key: ApiKey, clear_text: str, known: Known) -> dict[str, Any]:
    model = known.example_for(key)
    return {
        "example_model": model,
        "snippets": snippets(api_url(), clear_text, model or "llama3.2"),
    }
