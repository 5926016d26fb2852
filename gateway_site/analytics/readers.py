"""Who asks, and what they may see."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest

from gateway_site.management_api.errors import Forbidden, NotFound, Unauthorized, Unavailable
from gateway_site.management_api.own_key import address_of, any_right
from gateway_site.management_api.tokens import headers_of, refused
from proxy.admission import NOT_ACCEPTED, credentials
from proxy.borrowed_places import check_unborrowed
from proxy.errors import Forbidden as ForbiddenHere
from proxy.errors import Unauthorized as UnauthorizedHere
from proxy.errors import Unavailable as UnavailableHere
from proxy.snapshot import Key
from tenants.acting import Via, acting
from tenants.models import User
from usage import texts
from usage.models import StoredText
from usage.reports import Scope
from usage.views.scoped import chosen, record_scopes

NEEDED = "Sign in, or send an API key, e.g. as 'Authorization: Bearer ogw_…'."
NO_TENANT = "You are in no tenant yet, so there is nothing that you may see."


@dataclass(frozen=True, slots=True)
class Reader:
    """`name`: for who counts how often they ask. `texts`: that may be shown; None: not here."""

    name: str
    user: User | None
    scope: Scope | None
    texts: QuerySet[StoredText] | None = None

    def noting(self) -> AbstractContextManager[None]:
        """What is noted inside is noted as this reader's."""
        if self.texts is None:
            return nullcontext()
        return acting(self.user or self.name, via=Via.API, name=self.name)

    def must_see(self) -> Scope:
        if self.scope is None:
            raise NotFound(NO_TENANT)
        return self.scope


def reader_of(request: HttpRequest) -> Reader:
    """Raises Unauthorized, Forbidden, NotFound, Unavailable, TooManyRequests."""
    try:
        brings_key = bool(credentials(headers_of(request), settings.GATEWAY.auth_header))
    except UnauthorizedHere as exc:
        raise refused(request, exc.message, "invalid_key") from None
    if not brings_key and request.user.is_authenticated and _takes_cookies(request):
        assert isinstance(request.user, User)
        return _of_session(request, request.user)
    return _of_key(_key(request, brings_key=brings_key))


def _takes_cookies(request: HttpRequest) -> bool:
    """Where pages have a port of their own, cookies say nothing on another: what a backend answers there could use
    them (T9)."""
    return not settings.ADMIN_PORT or request.META.get("SERVER_PORT") == str(settings.ADMIN_PORT)


def _of_session(request: HttpRequest, user: User) -> Reader:
    try:
        scope = chosen(request, record_scopes(user))  # type: ignore[arg-type]
    except Http404:
        raise NotFound("There is nothing of this name that you may see.") from None
    return Reader(f"user {user.pk}", user, scope)


def _of_key(key: Key) -> Reader:
    rows = Q(tenant=key.tenant_id, user=key.user_id) if key.user_id else Q(api_key=key.id)
    label = f"{key.user_name} in {key.tenant_name}" if key.user_id else f"the key {key.name}"
    user = User.objects.filter(pk=key.user_id).first() if key.user_id else None
    # A place in the network is many people's: what one of them wrote is not for the others.
    own = None if key.acting else texts.readable(rows, rows, may_read_others=False)
    keys = None if key.user_id else Q(pk=key.id)
    return Reader(f"key: {key.prefix}", user, Scope("key", label, rows, keys), own)


def _key(request: HttpRequest, *, brings_key: bool) -> Key:
    """As a call is admitted, also by its place in the network."""
    from gateway_site.asgi import gateway  # the process's own, which imports what asks

    if getattr(request, "scope", None) is None:
        raise Unauthorized(NEEDED, "missing_key")
    try:
        key = gateway.admission.admit(
            gateway.rules(), any_right(), headers_of(request), address_of(request), gateway.now()
        )
    except UnavailableHere as exc:
        raise Unavailable(exc.message) from None
    except ForbiddenHere as exc:
        raise Forbidden(exc.message, exc.code) from None
    except UnauthorizedHere as exc:
        if not brings_key:
            raise Unauthorized(NEEDED, "missing_key") from None
        raise refused(request, exc.message, "invalid_key") from None
    if key.acting and _may_be_borrowed(request):
        raise Unauthorized(NOT_ACCEPTED if brings_key else NEEDED, "invalid_key" if brings_key else "missing_key")
    return key


def _may_be_borrowed(request: HttpRequest) -> bool:
    """Whether somebody else may use the caller's place."""
    from gateway_site.asgi import gateway

    fields = dict(headers_of(request))
    own_origin = f"{request.scheme}://".encode() + fields.get(b"host", b"")
    try:
        check_unborrowed(gateway, fields, own_origin, request.META.get("REMOTE_ADDR", ""))
    except ForbiddenHere:
        return True
    return False
