"""Who is asking: a management token, or for `/key` an API key. Never a cookie."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from ninja.security.base import AuthBase

from gateway_site.management_api.errors import Forbidden, TooManyRequests, Unauthorized
from proxy.admission import credentials
from proxy.errors import Unauthorized as UnreadableCredential
from tenants import management_tokens, rate_limits
from tenants.models import ManagementToken, Role, Tenant, User

FAILURES = rate_limits.Allowance(
    "management token", settings.GATEWAY.failed_credentials_per_minute, 60, "requests with tokens that are not accepted"
)
NEEDED = "A management token is needed. Send it as 'Authorization: Bearer ogm_…'; people make them under /tokens/."
NOT_ACCEPTED = (
    "This management token is not accepted: it may be mistyped, unknown, expired or revoked, or its user is switched "
    "off. API keys are none."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A token and its user as they are at this moment: rights are asked anew for each request."""

    token: ManagementToken
    request: HttpRequest

    @property
    def user(self) -> User:
        return self.token.user

    def require(self, scope: str) -> None:
        if scope not in self.token.scopes:
            raise Forbidden(f"This token lacks the scope {scope}. Make one that has it.", "scope_missing")

    def require_everywhere(self, what: str) -> None:
        """For what is no tenant's."""
        if self.token.tenant_id is not None:
            raise Forbidden(f"This token reaches the tenant {self.token.tenant} alone, and no {what}.")

    def oversees(self, model: type[Model], action: str) -> bool:
        """As in the admin: superusers, and staff with the permission. `action`: view, add, change, delete."""
        user, opts = self.user, model._meta
        return user.is_superuser or (user.is_staff and user.has_perm(f"{opts.app_label}.{action}_{opts.model_name}"))

    def tenants_seen(self) -> QuerySet[Tenant]:
        everywhere = self.oversees(Tenant, "view")
        return self._reached(Tenant.objects.current() if everywhere else self.user.tenants_with_role(*Role.values))

    def tenants_governed(self, model: type[Model], action: str) -> QuerySet[Tenant]:
        """Whose rows of a kind they may view, add, change or delete: as owners, or as those who oversee them."""
        return self._reached(Tenant.objects.current() if self.oversees(model, action) else self.user.tenants_owned())

    def tenants_for_keys(self) -> QuerySet[Tenant]:
        return self._reached(self.user.tenants_for_keys())

    def _reached(self, tenants: QuerySet[Tenant]) -> QuerySet[Tenant]:
        return tenants if self.token.tenant_id is None else tenants.filter(pk=self.token.tenant_id)


class ManagementTokenAuth(AuthBase):
    openapi_type = "http"
    openapi_scheme = "bearer"

    def __call__(self, request: HttpRequest) -> Caller:
        return authenticated(request)


def authenticated(request: HttpRequest) -> Caller:
    """Raises Unauthorized, and TooManyRequests for an address that tried too often."""
    token = management_tokens.find(presented(request, NEEDED))
    if token is None:
        raise refused(request, NOT_ACCEPTED)
    management_tokens.note_use(token)
    return Caller(token, request)


def presented(request: HttpRequest, needed: str) -> bytes:
    """The one credential of a request, in each form that calls take: Bearer, Basic, bare, x-api-key, AUTH_HEADER."""
    try:
        found = credentials(headers_of(request), settings.GATEWAY.auth_header)
    except UnreadableCredential:
        raise refused(request, needed) from None
    if not found:
        raise Unauthorized(needed, "missing_token", headers={"WWW-Authenticate": 'Bearer realm="Ollama Gateway"'})
    if len(found) > 1:
        raise refused(request, "Two different credentials were sent. Send one.")
    return found[0]


def refused(request: HttpRequest, message: str, code: str = "") -> Unauthorized | TooManyRequests:
    """Counts a failure of the caller's address: what to raise for it."""
    for kind, value in rate_limits.address(request):
        if seconds := rate_limits.seconds_to_wait(request, FAILURES, kind, value):
            return TooManyRequests(f"Too many {FAILURES.what} came from this address.", seconds)
    return Unauthorized(message, code)


def headers_of(request: HttpRequest) -> Iterable[tuple[bytes, bytes]]:
    """As they were received, where the server says: Django joins what was sent twice."""
    scope: dict[str, Any] | None = getattr(request, "scope", None)
    if scope is not None:
        return scope["headers"]
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
