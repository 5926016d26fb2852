"""docs/clients.md: each client library and tool, on each server and transport, cell by cell."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import pytest_asyncio

from tests.clients import run
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.driver import Driver
from tests.live.conftest import gateways
from tests.live.gateway import Gateway

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SERVERS = ("uvicorn", "daphne", "bare-daphne")
TRANSPORTS = ("wire", "httpx")
COMBINATIONS = [(server, transport) for server in SERVERS for transport in TRANSPORTS]
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
        import time

        began = time.monotonic()
        async with run.make_fake() as fake:
            gateway = self.make_gateway(server=server, FAILED_CREDENTIALS_PER_MINUTE="1000")
            gateway.make_backend(fake.url, transport=transport, slots=64)
            trials = run.make_trials(gateway, CLIENTS)
            gateway.start()
            await run.run(trials, gateway.url, self.drivers)
            with suppress(TimeoutError):  # a stream that nobody ended is a problem of its trial
                await fake.saw_idle(timeout=30)
            strays = ["the fake is busy"] if fake.counts()["running_calls"] else []
            gateway.stop()
            if os.environ.get("H6"):
                for trial in sorted(trials, key=lambda trial: -trial.seconds)[:12]:
                    print(server, transport, trial.client.name, trial.scenario, round(trial.seconds, 2))
                print(time.monotonic() - began)
            strays += run.gather_traces(trials, gateway, fake)
            found: Problems = {("", ""): strays}
            for trial in trials:
                problems = [f"{trial.scenario}: {problem}" for problem in run.problems_of(trial, fake)]
                found.setdefault((trial.client.name, trial.column), []).extend(problems)
            return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def matrix(tmp_path_factory, sqlite_template, django_db_blocker) -> AsyncIterator[Matrix]:
    base = tmp_path_factory.mktemp("clients")
    drivers = {
        client.name: Driver(client.command, base / f"driver-{number}.log")
        for number, client in enumerate(CLIENTS)
        if client.driver
    }
    for driver in drivers.values():
        await driver.start()
    with gateways(base, sqlite_template, django_db_blocker) as make_gateway:
        yield Matrix(make_gateway, drivers)
    for driver in drivers.values():
        await driver.stop()


@pytest.mark.parametrize(("server", "transport"), COMBINATIONS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_what_a_client_has_works_with_only_url_and_key_changed(
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
