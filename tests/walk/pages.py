"""Every URL there is, found by walking the resolver, and filled in with the rows of a tenant."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.http import HttpResponseBase
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern, RoutePattern
from django.utils.regex_helper import normalize

from proxy.models import Webhook
from tenants.models import ApiKey, Invitation, IPRule, Limit, ManagementToken, Membership, Tenant
from tests.walk.rows import Rows
from usage.models import UsageRecord

# What goes into a parameter of a URL, for what begins like this; the first that fits counts. Pages of a table in the
# admin need no line here: they get the keys of its rows.
FILLS: tuple[tuple[str, str, Callable[[Rows], list[object]]], ...] = (
    ("invitation/", "token", lambda rows: [rows.token]),
    ("setup/", "token", lambda rows: ["a-token-that-is-none"]),
    ("people/invitations/", "pk", lambda rows: keys_of(rows, Invitation)),
    ("people/", "pk", lambda rows: keys_of(rows, Membership)),
    ("account/2fa/webauthn/", "pk", lambda rows: keys_of(rows, Authenticator)),
    ("account/", "provider_id", lambda rows: ["oidc"]),
    ("account/", "uidb36", lambda rows: ["1"]),
    ("account/", "key", lambda rows: ["no-such-link"]),
    ("admin/r/", "content_type_id", lambda rows: [ContentType.objects.get_for_model(Tenant).pk]),
    ("admin/r/", "object_id", lambda rows: keys_of(rows, Tenant)),
    ("limits/new/", "tenant", lambda rows: keys_of(rows, Tenant)),
    ("limits/webhooks/", "pk", lambda rows: keys_of(rows, Webhook)),
    ("limits/", "pk", lambda rows: keys_of(rows, Limit)),
    ("ip-rules/", "tenant", lambda rows: keys_of(rows, Tenant)),
    ("ip-rules/", "pk", lambda rows: keys_of(rows, IPRule)),
    ("requests/", "pk", lambda rows: keys_of(rows, UsageRecord)),
    ("tokens/", "prefix", lambda rows: [token.prefix for token in rows[ManagementToken]]),
    # Which answers nobody by a cookie; by tokens it is walked in tests/live/test_management_api.py.
    ("manage/api/", "id", lambda rows: keys_of(rows, Tenant)),
    ("admin/", "url", lambda rows: ["nothing-here"]),
    ("admin/", "app_label", lambda rows: sorted({label.split("_")[0] for label in admin_tables()})),
    ("", "prefix", lambda rows: [key.prefix for key in rows[ApiKey]]),
)


class UnknownParameter(Exception):
    pass


@dataclass(frozen=True)
class Page:
    template: str  # "admin/tenants/limit/%(object_id)s/change/"
    parameters: tuple[str, ...]
    name: str  # "admin:tenants_limit_change"; empty where there is none
    view: Any

    @property
    def model(self) -> type[models.Model] | None:
        """The table that a page of the admin is about."""
        match = re.match(r"admin/(\w+)/(\w+)/", self.template)
        return admin_tables().get(f"{match[1]}_{match[2]}") if match else None

    def paths(self, rows: Rows) -> list[str]:
        """Of the rows of one tenant, without doubles."""
        choices = {name: self._fill(name, rows) for name in self.parameters}
        count = max(map(len, choices.values()), default=1)
        found = [{name: values[number % len(values)] for name, values in choices.items()} for number in range(count)]
        return list(dict.fromkeys("/" + self.template % each for each in found))

    def missing(self, rows: Rows) -> str:
        """The same page of what nobody has."""
        return "/" + self.template % {name: unlike(self._fill(name, rows)[0]) for name in self.parameters}

    def _fill(self, name: str, rows: Rows) -> list[object]:
        for beginning, parameter, values in FILLS:
            if parameter == name and self.template.startswith(beginning):
                return values(rows)
        if self.model is not None:
            return keys_of(rows, self.model)
        raise UnknownParameter(
            f"The walk does not know what to put for <{name}> into the URL {self.template} ({self.name}): say so in "
            "FILLS of tests/walk/pages.py."
        )


def keys_of(rows: Rows, model: type[models.Model]) -> list[object]:
    """As URLs of the admin quote them."""
    from django.contrib.admin.utils import quote

    made = rows.made.get(model)
    if made is None:  # a table that the walk makes no rows of
        row = model._default_manager.first()
        return [quote(row.pk)] if row else [1]
    return [quote(row.pk) for row in made]


def unlike(value: object) -> object:
    text = str(value)
    if re.fullmatch(r"\d+", text):
        return 987_654_321
    if re.fullmatch(r"[0-9a-f-]{36}", text):
        return "00000000-0000-7000-8000-000000000000"
    return "nothing"


@cache
def admin_tables() -> dict[str, type[models.Model]]:
    from django.contrib import admin

    return {f"{model._meta.app_label}_{model._meta.model_name}": model for model in admin.site._registry}


def pages() -> list[Page]:
    """All of the resolver, in its order. What an earlier pattern hides is left out."""
    found = {}
    for page in _walk(get_resolver().url_patterns, "", (), ""):
        found.setdefault((page.template, page.parameters), page)
        # allauth's names are on the patterns that ours hide.
        if page.name and not found[page.template, page.parameters].name:
            found[page.template, page.parameters] = page
    return list(found.values())


def _walk(patterns: list[Any], before: str, parameters: tuple[str, ...], space: str) -> Any:
    for pattern in patterns:
        part, names = _part(pattern.pattern)
        if isinstance(pattern, URLResolver):
            inner = f"{space}{pattern.namespace}:" if pattern.namespace else space
            yield from _walk(pattern.url_patterns, before + part, parameters + names, inner)
        elif isinstance(pattern, URLPattern):
            name = f"{space}{pattern.name}" if pattern.name else ""
            yield Page(before + part, parameters + names, name, pattern.callback)
        else:
            raise TypeError(f"the walk does not know what {pattern!r} is")


def _part(pattern: RoutePattern | RegexPattern) -> tuple[str, tuple[str, ...]]:
    (part, names), *_ = normalize(pattern.regex.pattern)
    return part, tuple(names)


def text_of(response: HttpResponseBase) -> str:
    """All that a client is told: body, headers, cookies."""
    body = b"".join(response.streaming_content) if response.streaming else response.content
    headers = "\n".join(f"{name}: {value}" for name, value in response.items())
    return f"{headers}\n{response.cookies}\n\n{body.decode(errors='replace')}"
