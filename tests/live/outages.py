"""A database that goes away under load, and comes back."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from tests.live.crashes import Account, Clients, FakeProcess, Verdict, judge
from tests.live.gateway import Gateway
from tests.postgres import Cluster


@contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    """It refuses connections, and has cut those it had."""
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()


@contextmanager
def hung(cluster: Cluster) -> Iterator[None]:
    """SIGSTOP: connections stay open, and nobody answers."""
    cluster.pause()
    try:
        yield
    finally:
        cluster.resume()


@contextmanager
def locked(gateway: Gateway) -> Iterator[None]:
    """Another process writes into the SQLite database, and takes its time."""
    path = gateway.database_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


async def endure(gateway: Gateway, fake: FakeProcess, key: str, outage: object, seconds: float, streams: int):
    """(verdict, what the clients saw) of a load that begins before an outage and ends after it."""
    fake.ids_since_last_time()
    clients = Clients(gateway, key, streams, seed=1)
    await clients.until_running(streams * 3 // 4)
    await asyncio.to_thread(outage.__enter__)
    try:
        await asyncio.sleep(seconds)
        during = len(clients.account.whole)
    finally:
        await asyncio.to_thread(outage.__exit__, None, None, None)
    gateway.connection.close()  # ours may be broken, too
    await clients.until_running(streams // 2)
    account: Account = await clients.stop()
    verdict: Verdict = await judge(gateway, fake.ids_since_last_time(), account)
    assert during, "no call ended during the outage: it proves nothing"
    return verdict, account
