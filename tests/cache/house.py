"""The whole path of a call in one loop: a real consumer, real limits, a real fleet and a fake Ollama on a socket; only
the servers in front, the database and the spool are left out. Clients are tasks that leave when they are told to."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from proxy.cache.policy import Settings
from proxy.configuration import Configuration
from proxy.consumers import GatewayConsumer
from proxy.errors import Refusal
from proxy.fleet import Fleet
from proxy.ledger import rows
from proxy.ledger.rows import AT
from proxy.runtime import Runtime
from proxy.snapshot import Backend, Snapshot, Tables
from tests.proxy.rules import PEPPER, new_key

PATIENCE = 30


class KeptRows:
    """In place of the ledger."""

    def __init__(self):
        self.closed = []
        self.refuses = False

    def admit(self, call):
        if self.refuses:
            raise Refusal("ledger_full", "full")
        return rows.opened(call, "EUR")

    def finish(self, call, row):
        self.closed.append(rows.closed(row, call))

    def progress(self, calls):
        [rows.note(call) for call in calls]

    def of(self, column):
        return [row[AT[column]] for row in self.closed]


@dataclass
class Answer:
    status: int = 0
    headers: dict = field(default_factory=dict)
    chunks: list = field(default_factory=list)
    ended: bool = False

    @property
    def body(self):
        return b"".join(self.chunks)

    @property
    def cache(self):
        return self.headers.get("x-cache", "")

    def json(self):
        return json.loads(self.body)


class House:
    def __init__(self, fakes, directory, *, policy="all", limits=(), transport="wire", **configuration):
        self.fakes = fakes
        self.runtime = runtime = Runtime(
            Configuration(spool_dir=Path(directory), key_pepper=PEPPER, probe_seconds=1, **configuration)
        )
        runtime.ledger = self.ledger = KeptRows()
        runtime.fleet = Fleet(runtime.configuration)
        self.cache = runtime.cache
        runtime._rules = SimpleNamespace(last_contact=float("inf"))
        backends = tuple(
            Backend(number, f"b{number}", fake.url, True, 500, None, transport) for number, fake in enumerate(fakes, 1)
        )
        self.keys = {}
        self.rows, self.digests = {}, {}
        self.tables = Tables(
            tenants={1: ("one", True), 2: ("two", True)}, backends=backends, limits=tuple(limits), keys=self.rows,
            digests=self.digests,
        )  # fmt: skip
        self.policy = policy
        self.add_key("one", tenant_id=1)
        self.add_key("two", tenant_id=2)

    def add_key(self, name, **fields):
        number = len(self.rows) + 1
        row, secret, digests = new_key(key_id=number, **{"cache_policy": self.policy, **fields})
        self.rows[number] = row
        self.digests.update(digests)
        self.keys[name] = secret
        self.use()

    def use(self, **tables):
        self.tables = replace(self.tables, **tables)
        self.runtime._use(Snapshot(self.tables, self.runtime.now(), Settings("off", 3600)))

    def change_key(self, number, **fields):
        self.rows[number] = self.rows[number]._replace(**fields)
        self.use()

    async def until_probed(self, *models):
        self.runtime.fleet.apply(self.tables.backends)
        deadline = time.monotonic() + PATIENCE
        while not all(set(models) <= set(state.models) and state.is_up for state in self.runtime.fleet.states.values()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that"
            await asyncio.sleep(0.005)

    async def ask(self, path, body, *, key="one", leaves=None, headers=(), paces=None, started=None):
        """The answer. `leaves`: an event with which the client leaves; `paces`: awaited with each chunk; `started`: an
        event that is set when the head has come."""
        answer = Answer()
        raw = json.dumps(body).encode()
        received = False
        tasks = set()

        async def receive():
            nonlocal received
            assert not received
            received = True
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(event):
            if event["type"] == "http.response.start":
                answer.status = event["status"]
                answer.headers = {name.decode(): value.decode() for name, value in event["headers"]}
                if started is not None:
                    started.set()
            else:
                if event["body"]:
                    answer.chunks.append(event["body"])
                answer.ended = not event["more_body"]
            if paces is not None:
                await paces(answer)

        async def leave(tell):
            await leaves.wait()
            tell()

        def on_departure(tell):
            if leaves is not None:
                tasks.add(asyncio.ensure_future(leave(tell)))

        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "client": ("127.0.0.1", 1),
            "headers": [(b"host", b"x"), (b"authorization", b"Bearer " + self.keys[key]), *headers],
            "extensions": {"gateway.disconnect": on_departure},
        }  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            await GatewayConsumer(self.runtime)(scope, receive, send)
        for task in tasks:
            task.cancel()
        return answer

    async def until_joined(self, count):
        """Until so many calls share the one answer that is being made."""
        flights = self.runtime.cache.flights
        await self.until(lambda: len(flights) == 1 and len(next(iter(flights)).listeners) == count)

    async def close(self):
        await self.cache.close()
        self.runtime.fleet.close()


@asynccontextmanager
async def house(fakes, directory, *models, **options):
    made = House(fakes, directory, **options)
    try:
        await made.until_probed(*models)
        yield made
    finally:
        await made.close()
