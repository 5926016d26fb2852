"""The Ollama servers: whether each answers, is not the gateway itself, and runs as many calls as it is sent."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from gateway_site import start
from gateway_site.doctor.findings import Finding, note, ok, problem, warning
from gateway_site.server.listeners import listener_of
from proxy import default_backend
from proxy.default_backend import MOVED_PORT, leads_to_us
from proxy.models import Backend, WorkerReport
from proxy.reaching import look_at
from proxy.resolution import addresses_of
from proxy.rules_watch import backend_of

AT_ONCE = 16
# OLLAMA_NUM_PARALLEL where it is not set.
OLLAMAS_DEFAULT = 1
LOOPBACK = ("127.", "::1")
# What the probe says of a server that took the connection and answered.
SOMETHING_ANSWERS = re.compile(r"/api/|It does not answer in valid HTTP")
# There in Docker's containers.
MARK_OF_A_CONTAINER = Path("/.dockerenv")


def look_at_backends() -> Iterator[Finding]:
    if Backend._meta.db_table not in connection.introspection.table_names() or not Backend.objects.exists():
        yield _the_first_one()
        return
    rows = list(Backend.objects.current().filter(enabled=True))
    if not rows:
        yield warning(
            "There is no backend that is switched on: every call is refused.",
            "Start Ollama, then: add_backend gpu1 http://127.0.0.1:11434",
        )
        return
    for url, count in Counter(row.url for row in rows).items():
        if count > 1:
            yield warning(
                f"{count} backends are one server, {url}: its slots count {count} times.", "Delete all but one."
            )
    problems = asyncio.run(_problems_of(rows))
    workers = max(1, WorkerReport.objects.running().count())
    for row in rows:
        said, models = problems[row.pk]
        if leads_to_us(row.url, settings.HOST, settings.PORT) or said == "It is this gateway itself.":
            yield problem(
                f"{row.name}: {row.url} is this gateway itself.",
                f"Move Ollama (OLLAMA_HOST=127.0.0.1:{MOVED_PORT} ollama serve), then: "
                f"add_backend {row.name} http://127.0.0.1:{MOVED_PORT}",
            )
        elif said:
            yield problem(f"{row.name}: {row.url}: {said}", _how_to_mend(row, said))
        elif not models:
            yield warning(f"{row.name}: {row.url} has no models.", "On that machine: ollama pull llama3.2")
        else:
            yield ok(f"{row.name}: {row.url} answers, with {models} models.")
            yield from _slots(row, workers)


def _the_first_one() -> Finding:
    """Of an installation that has never been started: what `serve` would begin with."""
    try:
        url = start.server_named("")[1] or start.server_behind(settings.PORT)
    except ImproperlyConfigured as exc:
        return problem(str(exc))
    said, models = asyncio.run(_problems_of([Backend(pk=0, name=default_backend.NAME, url=url)]))[0]
    if said:
        if SOMETHING_ANSWERS.match(said):
            found = f"where something answers that is not Ollama: {said}"
        else:
            found = f"which is not found: {said}"
        return warning(
            f"There is none yet. serve would begin with {url}, {found}",
            "Start Ollama (ollama serve), or name another server: serve --upstream http://gpu1:11434",
        )
    return ok(f"There is none yet; serve begins with {url}, which answers, with {models} models.")


async def _problems_of(rows: list[Backend]) -> dict[int, tuple[str, int]]:
    """id → (what is wrong, how many models)"""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(row: Backend) -> tuple[str, int]:
        async with room:
            state = await look_at(backend_of(row))
        return state.problem, len(state.models)

    return dict(zip([row.pk for row in rows], await asyncio.gather(*map(one, rows)), strict=True))


def _how_to_mend(row: Backend, said: str) -> str:
    """`said`: by the probe (proxy/fleet/probes.py)."""
    if re.search(r"answered 40[13]$", said):
        return "What answers there wants a credential: give it in the admin, on the page of the backend."
    if SOMETHING_ANSWERS.match(said):
        return (
            "Something answers there, and it is not Ollama, or has no working Ollama behind it. "
            f"Ollama's port is 11434 unless OLLAMA_HOST names another: add_backend {row.name} URL"
        )
    return "" if "certificate" in said.lower() else _how_to_reach(row)


def _how_to_reach(row: Backend) -> str:
    if not _is_here(row):
        return "On that machine: OLLAMA_HOST=0.0.0.0 ollama serve, and let its firewall pass this machine alone."
    if MARK_OF_A_CONTAINER.exists():
        return "In a container 127.0.0.1 is the container. Of Docker's host: http://host.docker.internal:11434"
    return "Start it: ollama serve. If it listens elsewhere: add_backend NAME URL"


def _slots(row: Backend, workers: int) -> Iterator[Finding]:
    """Calls beyond what Ollama runs would wait inside it, where nobody sees them."""
    sent = row.slots * workers
    runs = _parallel_of(row)
    where = f"{row.slots} slots" + (f" in each of {workers} workers" if workers > 1 else "")
    if runs is None:
        yield note(
            f"{row.name}: {where}. Its OLLAMA_NUM_PARALLEL cannot be seen from here.",
            "Make sure that it is the same number (Ollama's default is 1), or calls wait inside Ollama.",
        )
    elif sent > runs:
        yield warning(
            f"{row.name}: {where}, and its OLLAMA_NUM_PARALLEL is {runs}: calls would wait inside Ollama.",
            f"Lower the slots, or start Ollama with OLLAMA_NUM_PARALLEL={sent}.",
        )
    elif sent < runs:
        yield note(f"{row.name}: {where}, and Ollama would run {runs} at a time.", f"--slots {max(1, runs // workers)}")


def _parallel_of(row: Backend) -> int | None:
    """OLLAMA_NUM_PARALLEL of a server on this machine, where we may look into its process."""
    found = listener_of(urlsplit(row.url).port or 0) if _is_here(row) else None
    if found is None or not found[0].startswith("ollama"):
        return None
    try:
        environment = Path(f"/proc/{found[1]}/environ").read_bytes()
    except OSError:
        return None
    for entry in environment.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == b"OLLAMA_NUM_PARALLEL" and value.isdigit() and int(value):
            return int(value)
    return OLLAMAS_DEFAULT


def _is_here(row: Backend) -> bool:
    addresses = addresses_of(urlsplit(row.url).hostname or "")
    return bool(addresses) and all(address.startswith(LOOPBACK) for address in addresses)
