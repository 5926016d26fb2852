"""Row U6, issue 5: the official SDKs wait where a limit soon has room, and give up where waiting is pointless."""

import asyncio
import os
import shutil
import time
from dataclasses import dataclass

import pytest
import trustme
from django.db import transaction

from proxy.models import RefusalCount
from tenants.models import ApiKey, Limit
from tests.clients import run
from tests.clients.catalogue import CLIENTS
from tests.clients.driver import Driver
from tests.clients.drivers.jobs import MODELS
from tests.live.conftest import gateways

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

SDKS = ("openai-python", "openai-node", "anthropic-python", "anthropic-sdk (Node)")
PATIENCE = 120
SECONDS = 2
CAP = 16
# A call of the drivers reserves its 16 tokens and a quarter of its bytes, about 40; and uses 17.
ROOM = {"requests": 1, "tokens": 50}
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"


@dataclass
class Trial:
    """What a client meets: a limit that the first call fills, or one that nothing is left of."""

    client: str
    metric: str
    window: str
    waits: bool
    key: str = ""
    row: ApiKey | None = None

    @property
    def name(self):
        return f"{self.client}, {self.metric} per {self.window}"


TRIALS = [
    Trial(client, metric, window, waits=window == "seconds")
    for client in SDKS
    for metric, window in (("requests", "seconds"), ("tokens", "seconds"), ("requests", "day"), ("tokens", "month"))
]


def prepare(gateway):
    with transaction.atomic(using=gateway.alias):
        for trial in TRIALS:
            trial.row, trial.key = gateway.make_key(trial.name)
            gateway.rows(Limit).create(
                scope="key", key=trial.row, metric=trial.metric, window=trial.window, amount=ROOM[trial.metric],
                window_seconds=SECONDS if trial.window == "seconds" else None,
            )  # fmt: skip


async def attempt(trial, gateway, driver):
    """Returns what is wrong with what the client did."""
    # As the client itself asks, so that the second call does not fit beside the first.
    first = await driver.ask("chat", gateway.url, trial.key)
    if "text" not in first:
        return [f"the first call: {first}"]
    began = time.monotonic()
    if trial.waits:
        second = await driver.ask("chat", gateway.url, trial.key)
        if "text" not in second:
            return [f"the second call did not get through: {second}"]
        return []
    second = await driver.ask("refused", gateway.url, trial.key)
    found = []
    if (second.get("class"), second.get("status")) != ("RateLimitError", 429):
        found.append(f"raised {second}")
    unit = "requests" if trial.metric == "requests" else "tokens"
    if f"The limit of {ROOM[trial.metric]} {unit} per {trial.window} for key " not in second.get("message", ""):
        found.append(f"the error says {second.get('message')!r}")
    print(f"{trial.name}: gave up after {time.monotonic() - began:.2f} s")
    return found


async def test_u6_the_sdks_wait_for_a_short_window_and_give_up_for_a_long_one(
    tmp_path, sqlite_template, django_db_blocker
):
    clients = {client.name: client for client in CLIENTS if client.name in SDKS}
    assert len(clients) == len(SDKS)
    for client in clients.values():
        if not shutil.which(client.command[0]):
            pytest.fail(f"{client.command[0]} is missing: run scripts/clients", pytrace=False)
    authorities = tmp_path / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(authorities))
    drivers = {name: Driver(client.command, tmp_path / f"{name}.log", authorities) for name, client in clients.items()}
    wrong = {}

    async def go_through(client, gateway):
        for trial in TRIALS:
            if trial.client == client:
                wrong[trial.name] = await attempt(trial, gateway, drivers[client])

    try:
        with gateways(tmp_path, sqlite_template, django_db_blocker) as make_gateway:
            async with run.make_fake() as fake:
                gateway = make_gateway(PROBE_SECONDS="30", MAX_OUTPUT_TOKENS=str(CAP))
                gateway.make_backend(fake.url, slots=64)
                prepare(gateway)
                gateway.start(wait=False)
                await asyncio.to_thread(gateway.wait_until_ready, PATIENCE)
                await gateway.until_it_lists(MODELS["chat"], key=gateway.make_key("the tests")[1], seconds=PATIENCE)
                async with asyncio.TaskGroup() as tasks:
                    for client in SDKS:
                        tasks.create_task(go_through(client, gateway))
                await asyncio.to_thread(gateway.stop, PATIENCE)  # with which it tells its refusals
                refusals = {row.key_prefix: row.count for row in gateway.rows(RefusalCount).all()}
                calls = len(gateway.records())
    finally:
        for driver in drivers.values():
            await driver.stop()
    assert not any(wrong.values()), wrong
    for trial in TRIALS:
        refused = refusals.get(trial.row.prefix, 0)
        if trial.waits:
            # Usually once; not at all where this machine took longer than the window from one call to the next.
            assert refused <= 2, (trial.name, refused)
        else:
            assert refused == 1, (trial.name, refused)
    waited = [refusals.get(trial.row.prefix, 0) for trial in TRIALS if trial.waits]
    print(f"refusals of those who waited: {waited}; records {calls}")
    assert any(waited), "nobody had to wait: this proves nothing"
    assert calls == sum(2 if trial.waits else 1 for trial in TRIALS)
