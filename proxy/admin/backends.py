"""The Ollama servers: their rows, whether they answer, and what is done with the models on them."""

import asyncio
import re
import ssl
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString

from proxy import model_jobs
from proxy.backend_form import SECRET_WAY_FIELDS, WAY_FIELDS, WayForm
from proxy.backend_state import BackendView
from proxy.credentials import seal
from proxy.dependants import dependants, only_on
from proxy.model_names import InvalidModelName, parse
from proxy.models import Backend, ModelJob
from proxy.own_listeners import address_of_a_backend
from proxy.reaching import look_at
from proxy.rules_watch import backend_of
from tenants import rate_limits
from tenants.administering import Archived, ArchivingAdmin, apply, ask, badge

# Jobs shown on a backend's page, the newest.
RECENT_JOBS = 10
# Seconds between two looks at a page's jobs: while something runs, and else.
LIVELY, CALM = 1, 5

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Ours: they say where a message goes and where it ends.
_RESERVED_HEADERS = {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}


class BackendForm(WayForm):
    credential = forms.CharField(
        required=False,
        max_length=4096,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Value of that header, e.g. Bearer … . Kept encrypted and never shown. Empty: leave it as it is.",
    )
    forget_credential = forms.BooleanField(required=False, help_text="Send no credential any more.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "url" in self.fields:
            self.fields["url"].label = "URL"

    def clean_url(self) -> str:
        return address_of_a_backend(self.cleaned_data["url"])

    def clean_credential(self) -> str:
        value = self.cleaned_data["credential"]
        if not (value.isascii() and value.isprintable()):
            raise ValidationError("Use printable ASCII characters: it is sent in a header.")
        return value

    def clean_credential_header(self) -> str:
        name = self.cleaned_data["credential_header"].strip()
        if name and (not _HEADER_NAME.fullmatch(name) or name.lower() in _RESERVED_HEADERS):
            raise ValidationError("This cannot be the header of a credential. Write e.g. Authorization.")
        return name

    def clean_ca_certificates(self) -> str:
        pem = self.cleaned_data["ca_certificates"].strip()
        if pem:
            try:
                ssl.create_default_context(cadata=pem)
            except (ssl.SSLError, ValueError, TypeError):  # TypeError: not ASCII
                raise ValidationError("Paste certificates in PEM form: -----BEGIN CERTIFICATE----- …") from None
        return pem

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        kept = self.instance.credential_encrypted and not cleaned.get("forget_credential")
        if cleaned.get("credential") and cleaned.get("forget_credential"):
            raise ValidationError({"forget_credential": "Give a new credential or forget the old one, not both."})
        if kept and not cleaned.get("credential") and "url" in self.changed_data:
            # Else whoever may change the address could have the gateway tell it to a server of theirs.
            raise ValidationError({
                "credential": "The address changes: enter the credential for the new one again, or forget it."
            })  # fmt: skip
        if (cleaned.get("credential") or kept) and not cleaned.get("credential_header", True):
            raise ValidationError({"credential_header": "Name the header that the credential is sent in."})
        return cleaned

    def save(self, commit: bool = True) -> Backend:
        if self.cleaned_data["credential"]:
            self.instance.credential_encrypted = seal(self.cleaned_data["credential"])
        elif self.cleaned_data["forget_credential"]:
            self.instance.credential_encrypted = None
        return super().save(commit)


@admin.register(Backend)
class BackendAdmin(ArchivingAdmin):
    """Only superusers add or change: whoever names a backend makes the gateway connect there (threat B14)."""

    purpose = "The Ollama servers that answer calls."
    form = BackendForm
    change_form_template = "admin/proxy/backend/change_form.html"
    list_display = ["name", "url", "state", "version", "loaded", "installed", "slots", "transport"]
    list_select_related = ["report"]
    list_filter = [Archived, "enabled", "transport"]
    search_fields = ["name", "url"]
    search_help_text = "Name or address"
    fieldsets = [
        (None, {"fields": ["name", "url", "enabled", "slots", "context_length", "transport"]}),
        ("TLS and credential", {"fields": [
            "ca_certificates", "credential_header", "has_credential", "credential", "forget_credential",
        ]}),
        ("Way there", {"fields": WAY_FIELDS}),
        ("What is known of it", {"fields": ["set_by_environment", "created_at", "archived_at"]}),
    ]  # fmt: skip
    readonly_fields = ["has_credential", "has_client_key", "set_by_environment", "created_at", "archived_at"]
    actions = ["drain", "take_back", "restore"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        test = rate_limits.limited(rate_limits.TEST_BUTTON, rate_limits.user)(self.test)
        return [
            path("<int:pk>/test/", view(test), name="proxy_backend_test"),
            path("<int:pk>/models/", view(self.models), name="proxy_backend_models"),
            path("<int:pk>/models/list/", view(self.installed_part), name="proxy_backend_installed"),
            path("<int:pk>/models/jobs/", view(self.jobs_part), name="proxy_backend_jobs"),
            *super().get_urls(),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Backend | None = None) -> tuple[str, ...]:
        # Written anew at each start, so that an edit would be lost.
        owned = ("name", "url") if obj and obj.set_by_environment else ()
        return (*self.readonly_fields, *owned)

    def get_fieldsets(self, request: HttpRequest, obj: Backend | None = None) -> Any:
        if self.has_change_permission(request, obj) or obj is None:
            return self.fieldsets
        # Who may only look has no form, whose fields these are.
        hidden = {"credential", "forget_credential", *SECRET_WAY_FIELDS}
        return [
            (title, {"fields": [name for name in options["fields"] if name not in hidden]})
            for title, options in self.fieldsets
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        view = {"backend": BackendView.of(row)} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**view, **(extra_context or {})})

    # Lists.

    @admin.display(description="state", ordering="enabled")
    def state(self, backend: Backend) -> SafeString:
        view = BackendView.of(backend)
        return badge(view.state, view.tone)

    @admin.display(description="Ollama", empty_value="–")
    def version(self, backend: Backend) -> str | None:
        return backend.report.version if hasattr(backend, "report") else None

    @admin.display(description="loaded models")
    def loaded(self, backend: Backend) -> str:
        view = BackendView.of(backend)
        names = ", ".join(model["name"] for model in view.warm)
        return f"{names} and {view.more_warm} more" if view.more_warm else names

    @admin.display(description="installed")
    def installed(self, backend: Backend) -> int | None:
        return len(backend.report.models) if hasattr(backend, "report") else None

    @admin.display(description="credential kept")
    def has_credential(self, backend: Backend) -> SafeString:
        return _kept(backend.credential_encrypted)

    @admin.display(description="key kept")
    def has_client_key(self, backend: Backend) -> SafeString:
        return _kept(backend.client_key_encrypted)

    # Actions.

    def what_archiving_does_to(self, backend: Backend) -> list[str]:
        missed = only_on(backend)
        return [
            "It gets no new calls; those that run may finish.",
            f"No other backend has {', '.join(missed[:5])}{' …' if len(missed) > 5 else ''}."
            if missed
            else "All its models are on other backends, too, or are not known.",
            "Its usage records stay. It can be restored.",
        ]

    @admin.action(description="Drain selected backends: no new calls…", permissions=["change"])
    def drain(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        queryset = queryset.filter(enabled=True, archived_at=None).select_related("report")
        page = ask(
            self, request, queryset, title="Drain these backends?", button="Drain",
            text="They get no new calls; those that run may finish. Taking them back undoes it.",
            detail=lambda row: f"only it has {', '.join(missed[:5])}" if (missed := only_on(row)) else "",
            nothing="None of these backends gets calls.",
        )  # fmt: skip
        return page or apply(self, request, queryset, "Drained", enabled=False)

    @admin.action(description="Take selected backends back: new calls may go there", permissions=["change"])
    def take_back(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return apply(self, request, queryset.filter(enabled=False, archived_at=None), "Taken back", enabled=True)

    # One backend's own pages. For superusers, as its form: they make the gateway connect (B14, B15).

    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        row = self._get(request, pk)
        if request.method != "POST":
            return HttpResponseRedirect(reverse("admin:proxy_backend_change", args=[pk]))
        try:
            found = asyncio.run(look_at(backend_of(row)))
        except ValueError as exc:
            found, problem = None, str(exc)
        else:
            problem = found.problem
        return self._page(request, row, "test.html", f"Test of {row}", found=found, problem=problem)

    def models(self, request: HttpRequest, pk: int) -> HttpResponse:
        row = self._get(request, pk)
        if request.method == "POST":
            return self._act(request, row)
        return self._page(request, row, "models.html", f"Models on {row}", **(self._installed(row) | self._jobs(row)))

    def installed_part(self, request: HttpRequest, pk: int) -> HttpResponse:
        row = self._get(request, pk)
        return TemplateResponse(request, "admin/proxy/backend/_installed.html", self._installed(row))

    def jobs_part(self, request: HttpRequest, pk: int) -> HttpResponse:
        jobs = self._jobs(self._get(request, pk))
        headers = {"X-Refresh-Seconds": str(jobs["seconds"])}
        return TemplateResponse(request, "admin/proxy/backend/_jobs.html", jobs, headers=headers)

    def _get(self, request: HttpRequest, pk: int) -> Backend:
        if not self.has_change_permission(request):
            raise PermissionDenied
        row = Backend.objects.select_related("report").filter(pk=pk).first()
        if row is None:
            raise Http404
        return row

    def _page(self, request: HttpRequest, row: Backend, template: str, title: str, /, **more: Any) -> HttpResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "row": row, **more}
        return TemplateResponse(request, f"admin/proxy/backend/{template}", context)

    def _installed(self, row: Backend) -> dict[str, Any]:
        view = BackendView.of(row)
        warm = {model["name"]: model for model in view.report.warm} if view.report else {}
        models = [{**model, "warm": warm.get(model["name"])} for model in view.report.models] if view.report else []
        return {"row": row, "backend": view, "installed": models}

    def _jobs(self, row: Backend) -> dict[str, Any]:
        jobs = list(row.jobs.select_related("started_by").order_by("-started_at", "-id")[:RECENT_JOBS])
        runs = any(job.state == ModelJob.State.RUNNING for job in jobs)
        return {"row": row, "jobs": jobs, "seconds": LIVELY if runs else CALM}

    def _act(self, request: HttpRequest, row: Backend) -> HttpResponse:
        """What a button of the page of models asks for: its name is the action, its value the model or job."""
        back = HttpResponseRedirect(reverse("admin:proxy_backend_models", args=[row.pk]))
        if job := request.POST.get("cancel", ""):
            if job.isdecimal():
                row.jobs.running().filter(pk=int(job)).update(wants_cancel=True)
            return back
        action = next((action for action in ModelJob.Action if request.POST.get(action)), None)
        if action is None:
            return back
        try:
            model = parse(request.POST[action]).canonical
        except InvalidModelName:
            messages.error(request, "This cannot be the name of a model. Write one such as qwen3:8b.")
            return back
        if action == ModelJob.Action.DELETE and not request.POST.get("confirmed"):
            context = {"model": model, "dependants": dependants(model, row)}
            return self._page(request, row, "delete_model.html", f"Delete {model} from {row}?", **context)
        try:
            model_jobs.start(row, action, model, request.user)
        except model_jobs.Busy:
            messages.warning(request, f"Something is being done with {model} here already. Wait for it, or cancel it.")
        else:
            self.log_change(request, row, f"Started: {action} {model}.")
        return back


def _kept(sealed: bytes | None) -> SafeString:
    return badge("set, never shown", "ok") if sealed else badge("none", "off")
