"""What `serve` settles before it serves: where it listens, which backend it begins with, what a first start sets up."""

import logging
import re

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from proxy import default_backend
from proxy.config_json.importing import Report, import_file
from proxy.config_json.reading import BadConfig
from proxy.default_models import SEEDS
from proxy.models import DefaultModels, ModelAlias
from tenants.auditing import change
from tenants.keys import create_key
from tenants.models import ApiKey, IPRule, Tenant

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.0/8", "::1/128")
OPEN_TENANT, OPEN_KEY = "default", "open"
OPEN_WARNING = (
    "Open: everybody on this machine may call without a key. Whoever comes through a proxy or a tunnel on this machine "
    "counts as being on it, unless the proxy is in TRUSTED_PROXIES. To end it, delete the IP rules of 127.0.0.0/8 and "
    "::1 in the admin."
)

_LISTEN = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})\Z", re.IGNORECASE)


def listening_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, [IPv6]:PORT or :PORT, which means all addresses. Raises ValueError."""
    match = _LISTEN.match(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r}: write e.g. 0.0.0.0:9000, or :9000 for all addresses")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - what Go's listeners mean by it


def take_over_environment(upstream: str, host: str, port: int) -> None:
    """Has the backend that a flag or the environment names, or the one to begin with. Raises ImproperlyConfigured.

    The flag goes before OLLAMA_UPSTREAM, OLLAMA_URL, and OLLAMA_HOST with OLLAMA_PORT.
    """
    said, url = server_named(upstream)
    if url and default_backend.leads_to_us(url, host, port):
        raise ImproperlyConfigured(
            f"{said} leads to {url}, which is this gateway itself. Move Ollama to another port (OLLAMA_HOST=127.0.0.1:"
            f"{default_backend.MOVED_PORT} ollama serve) and start this with --upstream http://127.0.0.1:"
            f"{default_backend.MOVED_PORT}, or choose another --port."
        )
    if url:
        try:
            default_backend.own(url)
        except ValidationError as exc:
            raise ImproperlyConfigured(f"{said}: {' '.join(exc.messages)}") from None
        import_config_file(host, port)
        return
    default_backend.let_go()
    import_config_file(host, port)
    url = server_behind(port)
    if default_backend.begin_with(url):
        logger.info("The first backend is %s; change it in the admin, or name one: --upstream", url)


def server_behind(port: int) -> str:
    """What an empty installation begins with. A gateway in Ollama's place has Ollama behind it, one port further."""
    behind = default_backend.MOVED_PORT if port == default_backend.OLLAMA_PORT else default_backend.OLLAMA_PORT
    return f"http://127.0.0.1:{behind}"


def import_config_file(host: str, port: int) -> Report | None:
    """Brings what a mounted config.json says into the tables. None where there is none. Raises ImproperlyConfigured.

    `host`, `port`: where this process listens; 0: that is known by what running workers report.
    """
    if not settings.CONFIG_FILE:
        return None

    def refuse(url: str) -> None:
        if default_backend.leads_to_us(url, host, port):
            raise ValueError("this is the gateway itself. Name an Ollama server, or have the gateway listen elsewhere.")

    try:
        report = import_file(settings.CONFIG_FILE, refuse_server=refuse)
    except BadConfig as exc:
        raise ImproperlyConfigured(f"{settings.CONFIG_FILE}: {exc}") from None
    except ValidationError as exc:
        raise ImproperlyConfigured(f"{settings.CONFIG_FILE}: {' '.join(exc.messages)}") from None
    for field, text in report.lines:
        logger.info("%s: %s: %s", settings.CONFIG_FILE, field, text)
    return report


def server_named(flag: str) -> tuple[str, str]:
    """(by what, URL), both empty where neither the flag nor the environment names a server. Raises
    ImproperlyConfigured."""
    said, text = next(
        (
            (said, text)
            for said, text in (
                ("--upstream", flag),
                ("OLLAMA_UPSTREAM or OLLAMA_URL", settings.UPSTREAM),
                ("OLLAMA_HOST", settings.OLLAMA_HOST),
                ("OLLAMA_PORT", f":{settings.OLLAMA_PORT}" if settings.OLLAMA_PORT else ""),
            )
            if text
        ),
        ("", ""),
    )
    if not text:
        return "", ""
    try:
        return said, default_backend.meant_url(text, settings.OLLAMA_PORT if said == "OLLAMA_HOST" else 0)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{said}={text!r}: {exc}") from None


@transaction.atomic
def seed_aliases() -> None:
    """Has gpt-*, claude-* and text-embedding-* stand for the default models: once, and not beside aliases of others."""
    DefaultModels.the_row()
    unseeded = DefaultModels.objects.filter(aliases_seeded_at=None)
    if unseeded.update(aliases_seeded_at=timezone.now()) and not ModelAlias.objects.exists():
        for pattern, target in SEEDS:
            ModelAlias.objects.create(pattern=pattern, model=target)


@transaction.atomic
def open_to_loopback() -> None:
    """Lets this machine call without a key, as the key "open" of the tenant "default". Raises ImproperlyConfigured."""
    usable = ApiKey.objects.usable()
    now = timezone.now()
    rules = IPRule.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), action="allow", acts_as__isnull=False)
    for cidr in LOOPBACK:
        found = rules.filter(cidr=cidr)
        if found.filter(acts_as__in=usable).exists():
            continue
        key = _open_key()
        if not change(found, acts_as=key):
            IPRule.objects.create(cidr=cidr, action="allow", acts_as=key, note="serve --open")


def _open_key() -> ApiKey:
    tenant = Tenant.objects.get_or_create(name=OPEN_TENANT)[0]
    if tenant.archived_at or not tenant.enabled:
        raise ImproperlyConfigured(f"--open needs the tenant “{OPEN_TENANT}”, which is off. Restore it in the admin.")
    found = ApiKey.objects.usable().filter(tenant=tenant, name=OPEN_KEY).first()
    # Nobody is told its clear text: it is only ever acted as.
    return found or create_key(tenant, OPEN_KEY).row
