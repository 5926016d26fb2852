"""One backend, reached from a page or a job: as the probes reach it, by their rules, and apart from them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings

from proxy.fleet.probes import make_client, outbound_proxy, probe, resolve
from proxy.fleet.state import BackendState
from proxy.fleet.tls import context_for
from proxy.headers import instance_mark
from proxy.snapshot import Backend
from proxy.upstream.wire import Endpoint, Pool

# Seconds for all questions of a test together.
TEST_SECONDS = 8.0


class CannotReach(Exception):
    """Its text is for the person who asked, in our own words (B15)."""


@dataclass(frozen=True, slots=True)
class Reached:
    client: httpx.AsyncClient
    state: BackendState

    def stream(self, method: str, path: str, body: dict[str, Any], *, silence: float) -> Any:
        """`silence`: seconds that it may say nothing. The answer is open within `async with`."""
        backend = self.state.backend
        parts = urlsplit(backend.url)
        headers = {"host": self.state.host.decode(), "accept-encoding": "identity", "user-agent": "ollama-gateway"}
        if backend.credential is not None:
            name, value = backend.credential
            headers[name.decode("ascii")] = value.decode("latin-1")
        # Not the URL: httpx would ask for the name's address again, and might get one that was not checked (B14).
        # A proxy, whose address the pool's is, is told the name.
        address = parts.hostname if backend.proxy_url else self.state.pool.endpoint.addresses[0]
        url = httpx.URL(scheme=parts.scheme, host=address, port=parts.port, path=path)
        timeout = httpx.Timeout(silence, connect=5.0, write=30.0)
        extensions = {"sni_hostname": parts.hostname, "timeout": timeout.as_dict()}
        return self.client.stream(method, url, json=body, headers=headers, extensions=extensions)


@asynccontextmanager
async def reach(backend: Backend) -> AsyncIterator[Reached]:
    """Raises CannotReach where there is no address to connect to."""
    parts = urlsplit(backend.url)
    try:
        tls = context_for(backend)
    except (ssl.SSLError, ValueError, TypeError):
        raise CannotReach("Its CA certificates cannot be read. Paste them again.") from None
    try:
        addresses = await resolve(backend.proxy_url or backend.url)
    except ValueError as exc:
        raise CannotReach(str(exc)) from None
    except (OSError, TimeoutError):
        raise CannotReach("The name of its host is not known, or the name server does not answer.") from None
    endpoint = Endpoint(addresses, parts.port or 0, tls, parts.hostname, 5)
    mark = instance_mark(settings.KEY_PEPPER)
    async with make_client(tls or False, mark, outbound_proxy(backend)) as client:
        yield Reached(client, BackendState(backend, Pool(endpoint)))


async def look_at(backend: Backend) -> BackendState:
    """Asks a backend for its version and models. What is wrong with it stands in `problem`."""
    try:
        async with asyncio.timeout(TEST_SECONDS), reach(backend) as reached:
            await probe(reached.client, reached.state, tags=True)
            return reached.state
    except CannotReach as exc:
        return _failed(backend, str(exc))
    except TimeoutError:
        return _failed(backend, "It does not answer in time.")


def _failed(backend: Backend, problem: str) -> BackendState:
    endpoint = Endpoint((), 0, None, None, 5)
    return BackendState(backend, Pool(endpoint), problem=problem, failed_probes=1)
