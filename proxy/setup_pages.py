"""The first run: an account, a backend, a key, an answer. Each step can be left out and come back to."""

from collections.abc import Mapping

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from proxy.fleet.reports import note
from proxy.fleet.state import BackendState
from proxy.key_pages import example_for
from proxy.models import Backend
from proxy.reaching import look_at
from proxy.rules_watch import backend_of
from proxy.setup_forms import FirstAccountForm, FirstBackendForm, FirstKeyForm
from tenants import first_run, invitations, rate_limits, shown_once
from tenants.acting import acting
from tenants.keys import create_key
from tenants.models import ApiKey, Membership, Role, Tenant
from tenants.rate_limits import limited
from tenants.requests import PersonRequest
from tenants.snippets import api_url, snippets
from usage.models import UsageRecord

STEPS = {"account": "Account", "backend": "Backend", "key": "Key", "answer": "First answer"}


def urls() -> list[URLPattern]:
    return [
        path("setup/", resume, name="setup"),
        path("setup/backend/", backend, name="setup_backend"),
        path("setup/key/", key, name="setup_key"),
        path("setup/answer/<str:prefix>/", answer, name="setup_answer"),
        path("setup/answer/<str:prefix>/state/", answer_state, name="setup_answer_state"),
        path(
            "setup/<str:token>/",
            limited(rate_limits.INVITATION_LINK, rate_limits.address, "POST")(account),
            name="setup_account",
        ),
    ]


def account(request: HttpRequest, token: str) -> HttpResponse:
    if not first_run.opens(token):
        return _closed(request)
    form = FirstAccountForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        user = form.save(commit=False)
        try:
            with acting("set-up link"):
                first_run.make_first_account(token, user, form.cleaned_data["tenant"])
        except first_run.AlreadySetUp:
            return _closed(request)
        if user.email:
            invitations.note_address(user, user.email, verified=False)
        login(request, user, settings.AUTHENTICATION_BACKENDS[0])
        return redirect("setup_backend")
    response = _page(request, "account", {"form": form, "hide_sign_in": True})
    response.headers["Referrer-Policy"] = "strict-origin"  # see tenants/views/invited.py
    return response


def _closed(request: HttpRequest) -> HttpResponse:
    return render(request, "setup/closed.html", status=404)


@login_required
@require_safe
def resume(request: PersonRequest) -> HttpResponse:
    """The first step that is not done."""
    _for_superusers(request)
    if not Backend.objects.filter(archived_at=None, enabled=True).exists():
        return redirect("setup_backend")
    newest = ApiKey.objects.visible_to(request.user).filter(revoked_at=None).order_by("-created_at").first()
    if newest is None:
        return redirect("setup_backend" if not UsageRecord.objects.exists() else "setup_key")
    return redirect("setup_answer", newest.prefix)


@login_required
@limited(rate_limits.TEST_BUTTON, rate_limits.user)
def backend(request: PersonRequest) -> HttpResponse:
    _for_superusers(request)
    row = Backend.objects.filter(archived_at=None).order_by("created_at").first()
    form = FirstBackendForm(
        request.POST or None,
        instance=row or Backend(),
        initial={} if row else {"name": "default", "url": "http://127.0.0.1:11434", "slots": 1},
    )
    context: dict[str, object] = {"form": form}
    if request.method == "POST" and form.is_valid():
        if "test" in request.POST:
            context["found"] = _tested(form.instance)
        else:
            saved = form.save()
            found = _tested(saved)
            if found.is_up:
                note(saved.pk, found)  # so that the next pages know its models before the probes have been there
            return redirect("setup_key")
    return _page(request, "backend", context)


def _tested(row: Backend) -> BackendState:
    try:
        wanted = backend_of(row)
    except ValueError as exc:  # which the form has refused
        raise Http404 from exc
    # One wait for a network that may not answer, in a thread of its own: views are ordinary ones.
    return async_to_sync(look_at)(wanted)


@login_required
@limited(rate_limits.NEW_KEY, rate_limits.user)
def key(request: PersonRequest) -> HttpResponse:
    _for_superusers(request)
    owned = request.user.tenants_owned().filter(enabled=True)
    form = FirstKeyForm(request.POST or None, tenants=owned)
    if request.method == "POST" and form.is_valid():
        tenant = form.cleaned_data.get("tenant") or owned.first() or _first_tenant(request)
        made = create_key(tenant, form.cleaned_data["name"], user=request.user, created_by=request.user)
        return shown_once.keep(request, redirect("setup_answer", made.row.prefix), made.clear_text)
    return _page(request, "key", {"form": form})


def _first_tenant(request: PersonRequest) -> Tenant:
    tenant, _ = Tenant.objects.get_or_create(name="default")
    if tenant.archived_at or not tenant.enabled:
        text = "is switched off or was deleted, so the key would not work. Bring it back in the admin, under Tenants."
        raise PermissionDenied(f"The tenant “{tenant}” {text}")
    Membership.objects.update_or_create(tenant=tenant, user=request.user, defaults={"role": Role.OWNER})
    return tenant


@login_required
@require_safe
def answer(request: PersonRequest, prefix: str) -> HttpResponse:
    row = _key(request, prefix)
    clear_text = shown_once.take(request) or ""
    if f"_{prefix}_" not in clear_text:
        clear_text = ""
    model = example_for(row)
    context = {
        "key": row,
        "clear_text": clear_text,
        "example_model": model,
        "snippet": snippets(api_url(), clear_text or "YOUR_KEY", model or "llama3.2")["curl-ollama"],
        "state": _state(row),
    }
    return shown_once.forget_cookie(_page(request, "answer", context))


@login_required
@require_safe
def answer_state(request: PersonRequest, prefix: str) -> HttpResponse:
    """What setup.js asks for until there is something to show."""
    return JsonResponse(_state(_key(request, prefix)))


def _state(row: ApiKey) -> dict[str, object]:
    """Of the newest call of a key: did it work, and how fast was it?"""
    newest = UsageRecord.objects.filter(api_key=row.pk).order_by("-started_at", "-id").first()
    if newest is None:
        return {"received": False}
    return {
        "received": True,
        "ok": newest.outcome in ("ok", "cached", "coalesced"),
        "outcome": newest.get_outcome_display(),
        "error": newest.error,
        "model": newest.model,
        "backend": newest.backend,
        "prompt_tokens": newest.prompt_tokens,
        "answer_tokens": newest.completion_tokens,
        "seconds": round(newest.total_us / 1e6, 2),
        "tokens_per_second": round(newest.completion_tokens / (newest.decode_us / 1e6), 1)
        if newest.decode_us
        else None,
    }


def _key(request: PersonRequest, prefix: str) -> ApiKey:
    return get_object_or_404(ApiKey.objects.visible_to(request.user), prefix=prefix)


def _for_superusers(request: PersonRequest) -> None:
    if not request.user.is_superuser:
        raise PermissionDenied("The set-up is for administrators.")


def _page(request: HttpRequest, step: str, context: Mapping[str, object]) -> HttpResponse:
    names = list(STEPS)
    steps = [
        {"label": label, "done": names.index(name) < names.index(step), "current": name == step}
        for name, label in STEPS.items()
    ]
    return render(request, f"setup/{step}.html", {"steps": steps, **context})
