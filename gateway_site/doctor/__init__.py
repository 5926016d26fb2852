"""What `doctor` looks at: one function per thing, each says what is wrong and how to mend it. Nothing is changed."""

from collections.abc import Callable, Iterable

from django.conf import settings
from django.core import checks
from django.db import DatabaseError

from gateway_site.doctor import disks, network, servers, stores
from gateway_site.doctor.findings import Finding, Level, note, ok, problem, warning

__all__ = ["Finding", "Level", "examine"]


def look_at_settings() -> Iterable[Finding]:
    """The system checks; with https, which is for others, those of `check --deploy`, too."""
    messages = [
        message
        for message in checks.run_checks(tags=["security"], include_deployment_checks=settings.HTTPS)
        if not message.is_silenced()
    ]
    for message in messages:
        make = problem if message.level >= checks.ERROR else warning if message.level >= checks.WARNING else note
        yield make(str(message.msg), message.hint or "")
    if not messages:
        yield ok("nothing that contradicts itself.")


EXAMINATIONS: dict[str, Callable[[], Iterable[Finding]]] = {
    "Settings": look_at_settings,
    "Data directory": disks.look_at_data,
    "Spool": disks.look_at_spool,
    "Database": stores.look_at_database,
    "Redis": stores.look_at_redis,
    "Ports": network.look_at_ports,
    "Proxies": network.look_at_proxies,
    "Descriptors": network.look_at_descriptors,
    "Backends": servers.look_at_backends,
}


def examine() -> list[tuple[str, Finding]]:
    """(what was looked at, what was found), in the order in which to mend it."""
    found: list[tuple[str, Finding]] = []
    for name, look in EXAMINATIONS.items():
        try:
            found += [(name, finding) for finding in look()]
        except DatabaseError:
            found.append((name, note("cannot be told without the database.")))
    return found
