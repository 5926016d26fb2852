"""The backend "default", which the environment or a flag owns (OLLAMA_UPSTREAM, OLLAMA_HOST, `serve --upstream`)."""

import logging
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from proxy.backend_url import normalise_backend_url
from proxy.models import Backend
from proxy.resolution import addresses_of, is_of_this_machine, refuse_where_it_leads
from tenants.auditing import change

logger = logging.getLogger(__name__)

NAME = "default"
OLLAMA_PORT = 11434
# Where Ollama goes when the gateway takes its port.
MOVED_PORT = 11435

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def meant_url(text: str, port: int = 0) -> str:
    """The URL of a server in any form that OLLAMA_HOST takes: host, host:port, :port, scheme://host:port.

    `port` is for a text that names none. An address to listen on (0.0.0.0) means this machine. Raises ValueError.
    """
    text = text.strip().strip("\"'")
    if not _SCHEME.match(text):
        bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
        text = f"http://{bare}"
        port = port or OLLAMA_PORT
    parts = urlsplit(text)
    given = parts.port  # raises ValueError
    host = parts.hostname or ("127.0.0.1" if given is not None else "")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    if parts.username or parts.password or parts.path not in ("", "/") or parts.query or parts.fragment:
        return normalise_backend_url(text)  # which says what to leave out
    shown = f"[{host}]" if ":" in host else host
    chosen = port or None if given is None else given
    suffix = "" if chosen is None else f":{chosen}"
    return normalise_backend_url(f"{parts.scheme}://{shown}{suffix}")


def leads_to_us(url: str, host: str, port: int) -> bool:
    """Whether a server's URL is the address that the gateway itself listens on."""
    parts = urlsplit(url)
    if not port or parts.port != port:
        return False
    ours = {ip_address(found) for found in addresses_of(host)}
    everywhere = any(address.is_unspecified for address in ours)
    for found in addresses_of(parts.hostname or ""):
        address = ip_address(found)
        if address in ours or (everywhere and is_of_this_machine(address)):
            return True
    return False


def own(url: str) -> Backend:
    """Makes the row "default" lead to a URL, and marks it. Raises ValidationError."""
    try:
        refuse_where_it_leads(url)
    except ValueError as exc:
        raise ValidationError(str(exc)) from None
    row = Backend.objects.filter(name=NAME).first() or Backend(name=NAME)
    before = (row.url, row.set_by_environment, row.archived_at)
    row.url, row.set_by_environment, row.archived_at = url, True, None
    row.full_clean()
    if row.pk is None or before != (row.url, row.set_by_environment, row.archived_at):
        row.save()
    twins = Backend.objects.filter(url=url, enabled=True, archived_at=None).exclude(pk=row.pk)
    for twin in twins:
        logger.warning("The backends %s and %s are one server: its slots count twice. Delete one.", row.name, twin.name)
    return row


def let_go() -> None:
    """No variable names a server any more: the row becomes an ordinary one."""
    change(Backend.objects.filter(set_by_environment=True), set_by_environment=False)


def begin_with(url: str) -> Backend | None:
    """A backend for an installation that has never had one."""
    if Backend.objects.exists():
        return None
    return Backend.objects.create(name=NAME, url=url)
