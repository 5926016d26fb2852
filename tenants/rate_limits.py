"""How often a person may try what can be guessed or costs something (threat A11), counted by django-ratelimit."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from ipaddress import IPv6Address, ip_address

from django.conf import settings
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django_ratelimit.core import get_usage

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]
# (kind, value): each is counted apart.
Subjects = Iterable[tuple[str, str]]

# Counts while the shared cache is dead, for this process alone. Large, because a full one forgets at random.
_local = LocMemCache("rate limits", {"TIMEOUT": 3600, "MAX_ENTRIES": 100_000})


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many attempts of one thing, per subject, in a window of so many seconds."""

    name: str
    attempts: int
    seconds: int
    what: str  # as in "Too many …."


SIGN_IN = Allowance("sign-in", 10, 60, "attempts to sign in")
# Six digits, of which a few are valid at any time: ten in ten minutes cannot guess one in a year.
SECOND_FACTOR = Allowance("second factor", 10, 600, "codes tried")
PASSWORD_RESET = Allowance("password reset", 5, 600, "requests for a new password")
MAIL = Allowance("mail", 20, 3600, "messages sent")
NEW_KEY = Allowance("new key", 30, 3600, "new keys")
EXPORT = Allowance("export", 20, 600, "exports")
TEST_BUTTON = Allowance("test button", 20, 60, "tests")
INVITATION_LINK = Allowance("invitation link", 30, 600, "attempts to open an invitation")


def limited(allowance: Allowance, subjects: Callable[[HttpRequest], Subjects], method: str = "POST") -> Callable:
    """Decorates a view: it answers 429 to whom an allowance is used up for. Only requests of the method count."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
            if request.method != method:
                return view(request, *args, **kwargs)
            # All are counted, even if the first is used up already.
            waits = [seconds_to_wait(request, allowance, kind, value) for kind, value in subjects(request)]
            if wait := max(waits, default=0):
                return too_many(request, allowance, wait)
            return view(request, *args, **kwargs)

        return guarded

    return decorate


# Who is counted.


def address(request: HttpRequest) -> Subjects:
    return [("address", network_of(client_address(request)))]


def address_and_name(request: HttpRequest) -> Subjects:
    # Spellings of one name count as one.
    name = request.POST.get("login", request.POST.get("email", "")).strip().casefold()[:254]
    return [*address(request), ("name", name)]


def user(request: HttpRequest) -> Subjects:
    """Who is signed in; all strangers of one network are one."""
    if request.user.is_authenticated:
        return [("user", str(request.user.pk))]
    return address(request)


def address_and_pending_user(request: HttpRequest) -> Subjects:
    """Whoever has given a password and is asked for a second factor, or is asked again while signed in."""
    pending = request.session.get("account_login") or {}
    name = str(pending.get("user_pk") or request.user.pk or "")
    return [*address(request), ("user", name)] if name else address(request)


# Counting.


def seconds_to_wait(request: HttpRequest, allowance: Allowance, kind: str, value: str) -> int:
    """Counts one attempt; 0 if it may be made."""
    try:
        usage = get_usage(
            request,
            group=f"{allowance.name} {kind}",
            key=lambda group, request: value,
            rate=f"{allowance.attempts}/{allowance.seconds}s",
            increment=True,
        )
    # Each cache has exceptions of its own, and none of them may open the door or lock it.
    except Exception as exc:
        logger.warning("%s: counted in this process alone, the cache failed (%s)", allowance.name, type(exc).__name__)
        return _counted_here(allowance, kind, value)
    if usage is None:  # switched off by RATELIMIT_ENABLE
        return 0
    if usage["limit"] == 0:  # how django-ratelimit says that the cache did not count
        logger.warning("%s: counted in this process alone, the cache lost the count", allowance.name)
        return _counted_here(allowance, kind, value)
    return max(1, usage["time_left"]) if usage["should_limit"] else 0


def _counted_here(allowance: Allowance, kind: str, value: str) -> int:
    now = int(time.time())
    key = f"{allowance.name}:{kind}:{now // allowance.seconds}:{value.encode().hex()}".replace(" ", "-")
    count = 1 if _local.add(key, 1) else _local.incr(key)
    return allowance.seconds - now % allowance.seconds if count > allowance.attempts else 0


def client_address(request: HttpRequest) -> str:
    """The nearest address that is not one of our own proxies; as proxy/client_address.py tells it for calls."""
    nearest = request.META.get("REMOTE_ADDR", "")
    for hop in reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        try:
            trusted, parsed = _is_proxy(nearest), _unmapped(hop.strip())
        except ValueError:
            break
        if not trusted:
            break
        nearest = str(parsed)
    return nearest


def _is_proxy(peer: str) -> bool:
    if not peer:
        return settings.TRUSTS_UNIX
    parsed = _unmapped(peer)
    return any(parsed.version == network.version and parsed in network for network in settings.TRUSTED_PROXIES)


def network_of(text: str) -> str:
    """An address, or the /64 of an IPv6 one: whoever has one of these addresses has them all."""
    try:
        parsed = _unmapped(text)
    except ValueError:
        return text
    return str(parsed) if parsed.version == 4 else str(IPv6Address(int(parsed) >> 64 << 64))


def _unmapped(text: str):
    parsed = ip_address(text)
    return (parsed.version == 6 and parsed.ipv4_mapped) or parsed


def too_many(request: HttpRequest, allowance: Allowance, wait: int) -> HttpResponse:
    minutes = -(-wait // 60)
    when = f"in {wait} seconds" if wait < 90 else f"in {minutes} minutes"
    context = {
        "status": 429,
        "title": "Too many attempts",
        "text": f"Too many {allowance.what} in a short time. Try again {when}.",
        "request_id": getattr(request, "id", ""),
        "hide_sign_in": True,
    }
    response = render(request, "error.html", context, status=429)
    response.headers["Retry-After"] = str(wait)
    return response
