"""How often a sign-in may be tried (threat A11): by address and by user name, counted by django-ratelimit."""

import logging
import time
from collections.abc import Callable
from functools import wraps
from ipaddress import IPv6Address, ip_address

from django.conf import settings
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django_ratelimit.core import get_usage

ATTEMPTS = 10
WINDOW_SECONDS = 60

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]

# Counts while the shared cache is dead, for this process alone. Large, because a full one forgets at random.
_local = LocMemCache("sign-in", {"TIMEOUT": WINDOW_SECONDS, "MAX_ENTRIES": 100_000})


def limited_login(view: View) -> View:
    """A sign-in view that answers 429 to a caller or for a user name that was tried too often."""

    @wraps(view)
    def limited(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        # Both are counted, even if the first is used up already.
        waits = [seconds_to_wait(request, kind, value) for kind, value in subjects(request)]
        if wait := max(waits, default=0):
            return too_many(wait)
        return view(request, *args, **kwargs)

    return limited


class LimitedSignIn:
    """For an AdminSite: its sign-in page, limited."""

    def login(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponseBase:
        return limited_login(super().login)(request, extra_context)  # type: ignore[misc]


def subjects(request: HttpRequest) -> list[tuple[str, str]]:
    if request.method != "POST":
        return []
    # Spellings of one name count as one.
    name = request.POST.get("username", request.POST.get("login", "")).strip().casefold()[:150]
    return [("address", network_of(client_address(request))), ("name", name)]


def seconds_to_wait(request: HttpRequest, kind: str, value: str) -> int:
    """Counts one attempt; 0 if it may be made."""
    try:
        usage = get_usage(
            request,
            group=f"sign-in {kind}",
            key=lambda group, request: value,
            rate=f"{ATTEMPTS}/{WINDOW_SECONDS}s",
            method="POST",
            increment=True,
        )
    # Each cache has exceptions of its own, and none of them may open the door or lock it.
    except Exception as exc:
        logger.warning("Sign-ins are counted in this process alone: the cache failed (%s)", type(exc).__name__)
        return _counted_here(kind, value)
    if usage is None:  # switched off by RATELIMIT_ENABLE
        return 0
    if usage["limit"] == 0:  # how django-ratelimit says that the cache did not count
        logger.warning("Sign-ins are counted in this process alone: the cache lost the count")
        return _counted_here(kind, value)
    return max(1, usage["time_left"]) if usage["should_limit"] else 0


def _counted_here(kind: str, value: str) -> int:
    now = int(time.time())
    key = f"{kind}:{now // WINDOW_SECONDS}:{value.encode().hex()}"
    count = 1 if _local.add(key, 1) else _local.incr(key)
    return WINDOW_SECONDS - now % WINDOW_SECONDS if count > ATTEMPTS else 0


def client_address(request: HttpRequest) -> str:
    """The nearest address that is not one of our own proxies; as proxy/client_address.py tells it for calls."""
    address = request.META.get("REMOTE_ADDR", "")
    for hop in reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        try:
            peer, parsed = _unmapped(address), _unmapped(hop.strip())
        except ValueError:
            break
        if not any(peer.version == network.version and peer in network for network in settings.TRUSTED_PROXIES):
            break
        address = str(parsed)
    return address


def network_of(address: str) -> str:
    """An address, or the /64 of an IPv6 one: whoever has one of these addresses has them all."""
    try:
        parsed = _unmapped(address)
    except ValueError:
        return address
    return str(parsed) if parsed.version == 4 else str(IPv6Address(int(parsed) >> 64 << 64))


def _unmapped(address: str):
    parsed = ip_address(address)
    return (parsed.version == 6 and parsed.ipv4_mapped) or parsed


def too_many(wait: int) -> HttpResponse:
    return HttpResponse(
        f"Too many attempts to sign in. Try again in {wait} seconds.\n",
        status=429,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(wait), "Cache-Control": "no-store"},
    )
