"""Real servers on real sockets. Each test has a gateway, a fake Ollama and a database of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tests.live.gateway import Gateway, copied_sqlite
from tests.live.raw import RawClient

# The tests look at the gateway's database between awaits; it is another process that must not be blocked.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/live" in str(item.path):
            item.add_marker(pytest.mark.live)


@contextmanager
def gateways(base: Path, template: Path, blocker: Any) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(*, database_url: str = "", workers: int = 1, server: str = "uvicorn", **env: str) -> Gateway:
        directory = base / f"gateway-{len(made)}-{os.getpid()}-{abs(hash(base)) % 10**8}"
        directory.mkdir()
        url = database_url or copied_sqlite(template, directory / "gateway.sqlite3")
        gateway = Gateway(directory, url, workers=workers, server=server, **env)
        made.append(gateway)
        return gateway

    with blocker.unblock():
        yield make
        for gateway in made:
            gateway.close()


@pytest.fixture
def make_gateway(tmp_path: Path, sqlite_template: Path, django_db_blocker: Any) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways that are not started yet: give them keys and backends first, or start them at once."""
    with gateways(tmp_path, sqlite_template, django_db_blocker) as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, django_db_blocker: Any
) -> Iterator[Callable[..., Gateway]]:
    """The same for gateways that all tests of a module use."""
    with gateways(tmp_path_factory.mktemp("shared"), sqlite_template, django_db_blocker) as make:
        yield make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_fake() -> AsyncIterator[FakeOllama]:
    """One fake for a module whose tests share a loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`."""
    async with FakeOllama(models=["llama3.2", "qwen3:8b", "nomic-embed-text"], slots=8) as server:
        yield server


@pytest.fixture
async def fake() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(models=["llama3.2", "nomic-embed-text"], slots=4) as server:
        yield server


@pytest.fixture
async def gateway(make_gateway: Callable[..., Gateway], fake: FakeOllama) -> Gateway:
    """One started gateway in front of one fake, with one key in `gateway.key`."""
    made = make_gateway()
    made.make_backend(fake.url)
    made.key_row, made.key = made.make_key()
    # Off the loop, in which the fake has to answer its first probes.
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(loop_scope="module")
async def raw(gateway: Gateway) -> AsyncIterator[RawClient]:
    """Bytes on a socket, for modules whose tests share a gateway and a loop."""
    async with RawClient(gateway.port) as client:
        yield client
