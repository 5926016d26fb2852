"""“Why was my call refused?”: the page that asks what becomes of a call, for people of a tenant and for the admin."""

from collections.abc import Callable, Mapping
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.debug import sensitive_post_parameters

from proxy.client_address import Address, parse_address
from proxy.explaining import Question, told_here
from proxy.routes import ROUTES
from proxy.runtime import Runtime
from tenants import rate_limits
from tenants.keys import PREFIX_LENGTH, owner_of_secret
from tenants.models import ApiKey
from tenants.rate_limits import client_address, limited
from tenants.requests import PersonRequest

ENDPOINTS = [path.decode() for path, methods in ROUTES.items() if path != b"/" and {"POST", "GET"} & methods.keys()]
# What most calls are; and a listing would be answered whatever its model.
USUAL_ENDPOINT = "/api/chat"
LONGEST_PREFIX = 16
PERMISSIONS = ("tenants.view_apikey", "tenants.view_iprule", "tenants.view_limit", "proxy.view_backend")

by_person = limited(rate_limits.TEST_BUTTON, rate_limits.user)


class QuestionForm(forms.Form):
    key = forms.CharField(
        required=False,
        max_length=256,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text="Its prefix; or the whole key, which is neither kept nor shown again. Empty: a call without a key.",
    )
    model = forms.CharField(required=False, max_length=500, help_text="As the call names it, e.g. llama3.2")
    address = forms.CharField(max_length=64, help_text="Where the call comes from.")
    endpoint = forms.ChoiceField(choices=[(name, name) for name in ENDPOINTS])

    def __init__(self, *args: Any, keys: QuerySet[ApiKey], **kwargs: Any) -> None:
        """`keys`: those that this person may ask about; of others they learn nothing."""
        super().__init__(*args, **kwargs)
        self.keys = keys
        self.row: ApiKey | None = None
        self.secret = b""

    def clean_key(self) -> str:
        text = self.cleaned_data["key"].strip()
        if not text:
            return ""
        self.row = self.keys.filter(prefix=text.removeprefix("ogw_")).first() if len(text) <= LONGEST_PREFIX else None
        if self.row is None:
            self.secret = text.encode()
            self.row = owner_of_secret(self.keys, self.secret)
        if self.row is None:
            raise ValidationError("This is none of your keys. Its prefix is the part between the underscores.")
        return self.row.prefix

    def clean_address(self) -> Address:
        address = parse_address(self.cleaned_data["address"].strip())
        if address is None:
            raise ValidationError("Write an IP address such as 203.0.113.9.")
        return address

    @property
    def shown(self) -> "QuestionForm":
        """The form as it is shown again: a whole key is in no page."""
        if not self.is_bound:
            return self
        data: Any = self.data.copy()  # type: ignore[attr-defined]
        typed = data.get("key", "").strip()
        data["key"] = self.row.prefix if self.row is not None else typed if len(typed) <= LONGEST_PREFIX else ""
        again = QuestionForm(data, keys=self.keys)
        again._errors = self.errors  # type: ignore[attr-defined]
        return again

    def question(self, *, for_operator: bool) -> Question:
        cleaned, acting = self.cleaned_data, self.keys.filter(acting_rules__isnull=False)
        return Question(
            address=cleaned["address"],
            path=cleaned["endpoint"].encode(),
            model=cleaned["model"].strip(),
            key_id=self.row.pk if self.row is not None else None,
            is_without_key=self.row is None,
            secret=self.secret,
            for_operator=for_operator,
            acting_keys=None if for_operator else frozenset(acting.values_list("pk", flat=True)),
        )


def urls(runtime: Callable[[], Runtime]) -> list[URLPattern]:
    return [path("explain/", explain_page, {"runtime": runtime}, name="explain")]


@sensitive_post_parameters("key")
@login_required
@by_person
def explain_page(request: PersonRequest, runtime: Callable[[], Runtime]) -> HttpResponse:
    keys = ApiKey.objects.visible_to(request.user)
    if not keys.exists():
        raise PermissionDenied("You have no keys whose calls could be explained.")
    context = asked(request, keys, runtime, for_operator=False)
    return render(request, "explain/page.html", context)


@sensitive_post_parameters("key")
@by_person
def explain_in_admin(request: HttpRequest, runtime: Callable[[], Runtime], context: Mapping[str, Any]) -> HttpResponse:
    """`context`: of every page of the admin. Raises PermissionDenied."""
    if not request.user.has_perms(PERMISSIONS):
        raise PermissionDenied("To ask this you need the rights to see keys, IP rules, limits and backends.")
    told = asked(request, ApiKey.objects.all(), runtime, for_operator=True)
    return render(request, "admin/explain.html", {**context, **told, "title": "Explain a call"})


def asked(
    request: HttpRequest, keys: QuerySet[ApiKey], runtime: Callable[[], Runtime], *, for_operator: bool
) -> dict[str, Any]:
    if request.method != "POST":
        given = request.GET
        initial = {
            # A whole key does not belong into an address, and is not taken from there.
            "key": given.get("key", "")[:PREFIX_LENGTH],
            "model": given.get("model", "")[:500],
            "address": given.get("address", "")[:64] or client_address(request),
            "endpoint": given.get("endpoint", USUAL_ENDPOINT),
        }
        return {"form": QuestionForm(initial=initial, keys=keys)}
    form = QuestionForm(request.POST, keys=keys)
    told = None
    if form.is_valid():
        question = form.question(for_operator=for_operator)
        told = told_here(runtime(), settings.GATEWAY, question, lambda: timezone.now().timestamp())
    return {"form": form.shown, "told": told, "row": form.row}
