"""`/config/new-key` and `/config/reload`, which users of another gateway know: for superusers' tokens."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured
from django.db.models import F, Sum
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils import timezone

from gateway_site.management_api.bodies import rendered
from gateway_site.management_api.errors import Conflict, Forbidden, MethodNotAllowed, answer, problem_of
from gateway_site.management_api.resources import changing
from gateway_site.management_api.tokens import Caller, authenticated
from gateway_site.start import import_config_file
from proxy.config_json.importing import TENANT
from proxy.models import ConfigRevision
from tenants.keys import create_key
from tenants.models import AuditEntry, Tenant

Act = Callable[[Caller], dict[str, Any]]


def for_superusers(scope: str) -> Callable[[Act], Callable[[HttpRequest], HttpResponse]]:
    def decorate(act: Act) -> Callable[[HttpRequest], HttpResponse]:
        @wraps(act)
        def view(request: HttpRequest) -> HttpResponse:
            try:
                admit(request, scope)
                with changing(request) as caller:
                    content = act(caller)
            except Exception as exc:
                # The last resort: what nobody foresaw is logged there, and answered in the same shape.
                return answer(request, problem_of(exc))
            return HttpResponse(rendered(content), "application/json")

        view.csrf_exempt = True  # type: ignore[attr-defined]  # no cookie is looked at
        return view

    return decorate


def admit(request: HttpRequest, scope: str) -> None:
    # Theirs is GET; who knows better sends POST.
    if request.method not in ("GET", "POST"):
        raise MethodNotAllowed("Here it is GET, POST.", headers={"Allow": "GET, POST"})
    caller = request.auth = authenticated(request)  # type: ignore[attr-defined]
    caller.require_everywhere("configuration of the gateway")
    caller.require(scope)
    if not caller.user.is_superuser:
        raise Forbidden("This is for superusers.")


@for_superusers("keys:write")
def new_key(caller: Caller) -> dict[str, Any]:
    """A service key of the tenant that imported keys belong to."""
    tenant = Tenant.objects.filter(name=TENANT).first()
    if tenant is None:
        tenant = Tenant(name=TENANT)
        tenant.save()
    if tenant.archived_at or not tenant.enabled:
        raise Conflict(f"The tenant “{tenant}” is off, so the key would not work. Switch it on in the admin.")
    made = create_key(tenant, f"/config/new-key {timezone.localtime():%Y-%m-%d %H:%M:%S}", created_by=caller.user)
    return {"key": made.clear_text}


@for_superusers("config:write")
def reload(caller: Caller) -> dict[str, Any]:
    """Reads the mounted file again, and has all workers read the rules anew."""
    try:
        report = import_config_file("", 0)
    except ImproperlyConfigured as exc:
        raise Conflict(f"The file was not imported, and nothing was changed: {exc}", "configuration_invalid") from None
    before = _revision()
    ConfigRevision.objects.update(revision=F("revision") + 1)
    after = _revision()
    AuditEntry.objects.create(
        content_type=ContentType.objects.get_for_model(ConfigRevision),
        object_pk="",
        object_repr="/config/reload",
        action=AuditEntry.Action.UPDATE,
        changes={"revision": [before, after]},
    )
    return {
        "reloaded": True,
        "file": settings.CONFIG_FILE or None,
        "changed": report is not None and report.changed,
        "fields": {} if report is None else report.by_field,
        "revision": after,
    }


def _revision() -> int:
    total: int | None = ConfigRevision.objects.aggregate(total=Sum("revision"))["total"]
    return total or 0


def urls() -> list[URLPattern]:
    return [path("config/new-key", new_key), path("config/reload", reload)]
