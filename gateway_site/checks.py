"""System checks of the settings (threat L6): errors keep `serve` from starting, warnings are said at its start, and
what only matters for others than its owner comes with `check --deploy`."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register

LEAST_SECRET = 32
REDIS_URLS = ("redis://", "rediss://", "unix://")


@register(Tags.security)
def check_settings(**_: object) -> list[CheckMessage]:
    """What contradicts itself."""
    problems: list[CheckMessage] = []
    site = urlsplit(settings.SITE_URL)
    if site.scheme not in ("http", "https") or not site.hostname:
        problems.append(
            Error(
                f"SITE_URL={settings.SITE_URL!r} is no address.",
                hint="Write it with its scheme, e.g. https://llm.example.com.",
                id="gateway.E001",
            )
        )
    if settings.REDIS_URL and not settings.REDIS_URL.startswith(REDIS_URLS):
        problems.append(
            Error(
                "REDIS_URL does not begin with redis://, rediss:// or unix://.",
                hint="E.g. redis://redis:6379/0; leave it out where one process serves.",
                id="gateway.E002",
            )
        )
    if settings.OIDC_ISSUER and not all(
        app["client_id"] and app["secret"] for app in settings.SOCIALACCOUNT_PROVIDERS["openid_connect"]["APPS"]
    ):
        problems.append(
            Error(
                "OIDC_ISSUER is set without OIDC_CLIENT_ID and OIDC_CLIENT_SECRET: nobody could sign in by it.",
                hint="Set all three, or none.",
                id="gateway.E003",
            )
        )
    if any(network.prefixlen == 0 for network in settings.TRUSTED_PROXIES):
        problems.append(
            Warning(
                "TRUSTED_PROXIES believes everybody: whoever calls chooses the address that IP rules and logs see.",
                hint="List the addresses of your proxies alone, e.g. 10.0.0.2/32.",
                id="gateway.W001",
            )
        )
    return problems


@register(Tags.security, deploy=True)
def check_for_others(**_: object) -> list[CheckMessage]:
    """What is fine on one's own machine, and not beyond it."""
    return [message for check in DEPLOYMENT for message in check()]


def _site() -> Sequence[CheckMessage]:
    if settings.HTTPS and not settings.TRUSTED_PROXIES and not settings.TRUSTS_UNIX:
        text = "SITE_URL is https, and no proxy is believed: right with `serve --tls-cert` only."
        hint = "Behind a proxy set TRUSTED_PROXIES to its address, or all calls seem to come from it."
        return [Info(text, hint=hint, id="gateway.I001")]
    return []


def _names() -> Sequence[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        text = "ALLOWED_HOSTS has *: pages believe any name, and so do the links in their mails."
        return [Warning(text, hint="List the names that people use.", id="gateway.W002")]
    return []


def _metrics() -> Sequence[CheckMessage]:
    if settings.METRICS_ENABLED and any(network.prefixlen == 0 for network in settings.METRICS_NETWORKS):
        text = "METRICS_NETWORKS lets everybody read what is called, how often and by how many."
        return [Warning(text, hint="List the networks of your monitoring.", id="gateway.W003")]
    return []


def _origins() -> Sequence[CheckMessage]:
    if "*" in settings.CORS_ORIGINS:
        text = "CORS_ORIGINS has *: any web page may call the API with what its visitor's browser can reach."
        return [Warning(text, hint="List the origins of your pages.", id="gateway.W004")]
    return []


def _pepper() -> Sequence[CheckMessage]:
    if len(settings.KEY_PEPPER) < LEAST_SECRET:
        text = f"KEY_PEPPER is shorter than {LEAST_SECRET} characters: with a stolen table keys could be checked."
        hint = "openssl rand -base64 48. Put it first and keep the old one behind a comma, or all keys are void."
        return [Warning(text, hint=hint, id="gateway.W005")]
    return []


def _demo() -> Sequence[CheckMessage]:
    if settings.DEMO:
        text = "DEMO is on: pages say that they show a demo."
        return [Warning(text, hint="Leave it to the command demo.", id="gateway.W006")]
    return []


def _mail() -> Sequence[CheckMessage]:
    if not settings.EMAIL_IS_SENT:
        text = "EMAIL_URL is not set: invitations and alerts are written to the output instead of being sent."
        return [Info(text, hint="E.g. smtp+tls://user:password@mail.example.com:587.", id="gateway.I002")]
    return []


DEPLOYMENT = (_site, _names, _metrics, _origins, _pepper, _demo, _mail)
