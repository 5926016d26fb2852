"""Whose usage a page is about, as its address says; and addresses that keep what a page has been asked."""

from collections.abc import Mapping
from urllib.parse import urlencode

from django.http import Http404
from django.urls import reverse

from tenants.models import User
from tenants.requests import PersonRequest
from usage.reports import Scope, all_scopes


def record_scopes(user: User) -> list[Scope]:
    """As all_scopes, but single requests of all tenants are a table of their own, with its own permission (T3)."""
    may_see_all = user.has_perm("usage.view_usagerecord")
    return [scope for scope in all_scopes(user) if scope.slug != "all" or may_see_all]


def chosen(request: PersonRequest, scopes: list[Scope]) -> Scope | None:
    """404 for what is not in the list: it does not say whether it exists (T1)."""
    wanted = request.GET.get("of")
    if wanted is None:
        return scopes[0] if scopes else None
    for scope in scopes:
        if scope.slug == wanted:
            return scope
    raise Http404


def address(name: str, scope: Scope, query: Mapping[str, str], **changes: str | None) -> str:
    """Of a page with this query; of the changes, None leaves a parameter out."""
    parameters = {"of": scope.slug, **query, **changes}
    return f"{reverse(name)}?{urlencode({key: value for key, value in parameters.items() if value})}"
