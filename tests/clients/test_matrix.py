"""docs/clients.md: each client library and tool, on each server and transport, cell by cell."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import pytest_asyncio
import trustme

from tests.clients import document, run
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.driver import Driver
from tests.live.conftest import gateways
from tests.live.gateway import Gateway

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

SERVERS = ("uvicorn", "daphne", "bare-daphne")
TRANSPORTS = ("wire", "httpx")
COMBINATIONS = [(server, transport) for server in SERVERS for transport in TRANSPORTS]
PATIENCE = 120  # seconds
# The tests look at the gateway's database between awaits; it is another process that must not be blocked.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

# (client, column) → what is wrong; of ("", "") what belongs to no client.
Problems = dict[tuple[str, str], list[str]]


class Matrix:
    """What each client saw on each server and transport; found out when it is first asked for."""

    def __init__(self, make_gateway: Callable[..., Gateway], drivers: dict[str, Driver]) -> None:
        self.make_gateway = make_gateway
        self.drivers = drivers
        self._runs: dict[tuple[str, str], asyncio.Task[Problems]] = {}

    async def on(self, server: str, transport: str) -> Problems:
        if (server, transport) not in self._runs:
            self._runs[server, transport] = asyncio.create_task(self._run(server, transport))
        return await asyncio.shield(self._runs[server, transport])

    async def _run(self, server: str, transport: str) -> Problems:
        began = time.monotonic()
        async with run.make_fake() as fake:
            # No probe may find this process too busy to answer for its fake.
            gateway = self.make_gateway(server=server, PROBE_SECONDS="30")
            gateway.make_backend(fake.url, transport=transport, slots=64)
            trials = run.make_trials(gateway, CLIENTS)
            gateway.start(wait=False)
            await asyncio.to_thread(gateway.wait_until_ready, PATIENCE)
            await run.until_served(gateway, PATIENCE)
            await run.run(trials, gateway.url, self.drivers)
            with suppress(TimeoutError):  # a stream that nobody ended is a problem of its trial
                await fake.saw_idle(timeout=30)
            await run.until_stored(gateway, fake, PATIENCE)
            await asyncio.to_thread(gateway.stop, PATIENCE)
            found: Problems = {("", ""): run.gather_traces(trials, gateway, fake)}
            for trial in trials:
                problems = [f"{trial.scenario}: {problem}" for problem in run.problems_of(trial, fake)]
                found.setdefault((trial.client.name, trial.column), []).extend(problems)
        print(f"{len(trials)} scenarios on {server} by {transport}: {time.monotonic() - began:.1f} s")
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def matrix(tmp_path_factory, sqlite_template, django_db_blocker) -> AsyncIterator[Matrix]:
    for client in CLIENTS:
        if client.driver and not shutil.which(client.command[0]):
            pytest.fail(f"{client.command[0]} is missing: run scripts/clients", pytrace=False)
    base = tmp_path_factory.mktemp("clients")
    authorities = base / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(authorities))
    drivers = {
        client.name: Driver(client.command, base / f"driver-{number}.log", authorities)
        for number, client in enumerate(CLIENTS)
        if client.driver
    }
    try:
        with gateways(base, sqlite_template, django_db_blocker) as make_gateway:
            yield Matrix(make_gateway, drivers)
    finally:
        for driver in drivers.values():
            await driver.stop()


@pytest.mark.parametrize(("server", "transport"), COMBINATIONS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_what_a_client_has_works_with_only_address_and_key_changed(
    matrix: Matrix, client: Client, server: str, transport: str
) -> None:
    found = await matrix.on(server, transport)
    wrong = [
        f"{column}: {problem}"
        for (name, column), problems in found.items()
        for problem in problems
        if name == client.name
    ]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize(("server", "transport"), COMBINATIONS)
async def test_each_call_of_a_backend_has_one_record(matrix: Matrix, server: str, transport: str) -> None:
    assert (await matrix.on(server, transport))["", ""] == []


async def test_the_document_says_what_was_seen(matrix: Matrix) -> None:
    failures: dict[tuple[str, str], list[str]] = {}
    for server, transport in COMBINATIONS:
        for cell, problems in (await matrix.on(server, transport)).items():
            if problems:
                failures.setdefault(cell, []).append(f"{server} with {transport}")
    text = document.render(failures)
    if os.environ.get("WRITE_CLIENTS"):
        document.PATH.write_text(text)
    assert document.PATH.read_text() == text, "docs/clients.md is of another run: scripts/clients write"
