"""This machine's network: who has our ports, and what the environment does to clients on it."""

import socket
import urllib.request
from collections.abc import Iterator

from django.conf import settings
from django.db import DatabaseError

from gateway_site.doctor.findings import Finding, note, ok, problem, warning
from gateway_site.server.listeners import bind, holder_of, what_to_do
from proxy.models import WorkerReport

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None  # type: ignore[assignment]

LEAST_DESCRIPTORS = 4096


def look_at_ports() -> Iterator[Finding]:
    ours = _ports_of_workers()
    ports = {"PORT": settings.PORT, "ADMIN_PORT": settings.ADMIN_PORT, "METRICS_PORT": settings.METRICS_PORT}
    for name, port in ports.items():
        if not port:
            continue
        if port in ours:
            yield ok(f"{name}: the gateway listens on {port}.")
        elif _is_free(settings.HOST, port):
            if ours:
                where = " and ".join(map(str, sorted(ours)))
                yield note(f"{name}: {port} is free: the gateway that runs listens on {where}.")
            else:
                yield ok(f"{name}: {port} is free; no gateway runs.")
        else:
            holder = holder_of(port) or "another process"
            yield problem(f"{name}: {port} is in use by {holder}.", what_to_do(holder, port))


def _ports_of_workers() -> set[int]:
    try:
        reports = WorkerReport.objects.running().values_list("listens", flat=True)
        return {int(place.rpartition(":")[2]) for listens in reports for place in listens}
    except DatabaseError:
        return set()


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bind((family, host, port)).close()
    except OSError:
        return False
    return True


def look_at_proxies() -> Iterator[Finding]:
    """The environment's: the gateway never uses them, clients on this machine do."""
    named = {
        scheme: where for scheme, where in urllib.request.getproxies().items() if scheme in ("http", "https", "all")
    }
    if not named:
        yield ok("the environment names none.")
    elif not urllib.request.proxy_bypass("127.0.0.1"):
        yield warning(
            f"The environment sends {', '.join(sorted(named))} through a proxy, and NO_PROXY does not except this "
            f"machine: curl and client libraries here would not reach the gateway.",
            "export NO_PROXY=localhost,127.0.0.1 and the gateway's name.",
        )
    else:
        yield note("The environment names a proxy. The gateway does not use it: a backend's is a field of the backend.")


def look_at_descriptors() -> Iterator[Finding]:
    if resource is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < LEAST_DESCRIPTORS:
        yield warning(
            f"A process may open {hard} files here, and a call takes two: about {hard // 2} at once.",
            "LimitNOFILE=65536 in the unit of systemd, or ulimit -n 65536.",
        )
    else:
        yield ok(f"{'any number' if hard == resource.RLIM_INFINITY else hard} per process.")
