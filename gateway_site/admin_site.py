"""The admin: our own site, whose first page is a dashboard and whose models stand in the order of the work."""

from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models.base import ModelBase
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse

from gateway_site import counters, dashboard
from proxy import explain_pages


@dataclass(frozen=True, slots=True)
class Group:
    slug: str
    name: str
    purpose: str
    models: tuple[str, ...]  # labels, in order


GROUPS = (
    Group("people", "People", "Who uses the gateway, and in which team.", (
        "tenants.Tenant", "tenants.User", "tenants.Membership", "tenants.Invitation",
    )),
    Group("access", "Access", "With which keys, from where, and how much.", (
        "tenants.ApiKey", "tenants.ManagementToken", "tenants.IPRule", "tenants.Limit", "proxy.Webhook",
    )),
    Group("fleet", "Fleet", "The Ollama servers, and what models are called and set to.", (
        "proxy.Backend", "proxy.ModelJob", "proxy.ModelAlias", "proxy.DefaultModels", "proxy.ModelPolicy",
        "proxy.PassThroughRoute", "proxy.CacheSettings", "proxy.CachePurge",
    )),
    Group("money", "Money", "What models cost.", ("usage.Price", "usage.Rerating")),
    Group("usage", "Usage", "What was used, as it was recorded. Nobody edits it.", (
        "usage.UsageRecord", "usage.UsageBucket", "usage.DailyUsage", "proxy.RefusalCount",
        "proxy.CacheUse",
        "proxy.LimitAlert", "proxy.Delivery",
    )),
    Group("sign-in", "Sign-in", "How people of this gateway prove who they are.", (
        "account.EmailAddress", "mfa.Authenticator", "socialaccount.SocialAccount", "auth.Group",
    )),
    Group("operation", "Operation", "The gateway itself.", (
        "tenants.AuditEntry", "proxy.WorkerReport", "proxy.ConfigRevision", "admin.LogEntry",
    )),
)  # fmt: skip
OTHERS = Group("more", "More", "", ())
_GROUP_OF = {label: group for group in GROUPS for label in group.models}


OUR_APPS = {"tenants", "usage", "proxy"}
# Tables of allauth that hold nothing but secrets and what is set by the environment.
NOT_SHOWN = {"socialaccount.SocialApp", "socialaccount.SocialToken", "account.EmailConfirmation"}
# Columns that hold one, or what it was made into, in any table.
SECRETS = {
    "client_key_encrypted", "credential_encrypted", "data", "digest", "extra_data", "password", "previous_digest",
    "proxy_credential_encrypted", "sealed", "secret", "secret_encrypted", "token",
}  # fmt: skip


class Discreet:
    """What holds for every table's pages, whoever wrote them."""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """No list is filtered by a secret: asked letter by letter it would be told letter by letter (T2)."""
        return not SECRETS & set(lookup.split("__")) and super().lookup_allowed(lookup, value, request)  # type: ignore[misc]

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        """Whoever may not see the rows of a table does not learn which there are (T1)."""
        if not self.has_view_or_change_permission(request):  # type: ignore[attr-defined]
            raise PermissionDenied
        return super()._get_obj_does_not_exist_redirect(request, opts, object_id)  # type: ignore[misc]


class GatewayAdminSite(admin.AdminSite):
    site_title = site_header = "Ollama Gateway"
    index_title = "Dashboard"

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        """Our page of a table takes the place of the one that its own app has, whichever is told of first."""
        ours = admin_class is not None and admin_class.__module__.partition(".")[0] in OUR_APPS
        for model in [model_or_iterable] if isinstance(model_or_iterable, ModelBase) else model_or_iterable:
            if model._meta.label in NOT_SHOWN or (self.is_registered(model) and not ours):
                continue
            if self.is_registered(model):
                self.unregister(model)
            named = admin_class or admin.ModelAdmin
            super().register(
                model, type(named.__name__, (Discreet, named), {"__module__": named.__module__}), **options
            )

    def get_urls(self) -> list[URLPattern | URLResolver]:
        own = [
            path("now/", self.admin_view(self.now), name="now"),
            path("explain/", self.admin_view(self.explain), name="explain"),
        ]
        return [*own, *super().get_urls()]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[dict[str, Any]]:
        """Groups in the place of apps, except on the page of one app."""
        if app_label is not None:
            return super().get_app_list(request, app_label)
        models = [
            {
                **model,
                "label": model["model"]._meta.label,
                "purpose": getattr(self._registry[model["model"]], "purpose", ""),
            }
            for app in self._build_app_dict(request).values()
            for model in app["models"]
        ]
        found = []
        for group in (*GROUPS, OTHERS):
            members = [model for model in models if _GROUP_OF.get(model["label"], OTHERS) is group]
            order = {label: place for place, label in enumerate(group.models)}
            members.sort(key=lambda model: (order.get(model["label"], 0), model["name"]))
            if members:
                found.append({
                    "name": group.name,
                    "purpose": group.purpose,
                    "app_label": group.slug,
                    "app_url": f"{reverse('admin:index')}#{group.slug}",
                    "has_module_perms": True,
                    "models": members,
                })  # fmt: skip
        return found

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        now = dashboard.read(request.user)
        return super().index(request, {"now": now, **(extra_context or {})})

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """There is one page for it, which is limited and asks for the second factor."""
        return HttpResponseRedirect(reverse("account_change_password"))

    def explain(self, request: HttpRequest) -> HttpResponse:
        return explain_pages.explain_in_admin(request, counters.runtime, self.each_context(request))

    def now(self, request: HttpRequest) -> HttpResponse:
        """The part of the dashboard that changes, for the script that keeps it up to date."""
        headers = {"Cache-Control": "no-store"}
        return TemplateResponse(request, "admin/_now.html", {"now": dashboard.read(request.user)}, headers=headers)
