"""A key is withdrawn while all workers serve it, with Redis up, killed or stopped: when does each of them know?"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from django.utils import timezone

from tenants.models import ApiKey, Limit
from tests.live.crashes import FakeProcess
from tests.live.gateway import Gateway
from tests.no_tls import NO_TLS
from tests.redis_server import RedisServer

STATES = ("up", "killed", "stopped")
# How long anything may take on a busy machine before a trial has failed; what it took is measured.
PATIENCE = 60
MESSAGES = [{"role": "user", "content": "hi"}]
# Path and body of a stream that does not end by itself, in each dialect.
STREAMS: dict[str, dict[str, Any]] = {
    "/api/chat": {"options": {"num_predict": 100_000}},
    "/v1/chat/completions": {"max_tokens": 100_000, "stream": True},
    "/v1/messages": {"max_tokens": 100_000, "stream": True},
}


@contextmanager
def redis_is(server: RedisServer, state: str) -> Iterator[None]:
    if state == "killed":
        server.kill()
    if state == "stopped":
        server.pause()
    try:
        yield
    finally:
        if state == "killed":
            server.start()
        if state == "stopped":
            server.resume()


@dataclass
class Trial:
    """Seconds from the commit of the withdrawal until …"""

    refused: list[float] = field(default_factory=list)  # … each connection of each worker got 401
    cut: list[float] = field(default_factory=list)  # … each stream had ended
    ids: list[str] = field(default_factory=list)  # of the streams
    workers: int = 0  # how many of them said 401
    faults: list[str] = field(default_factory=list)


class Revocations:
    """Trials on one gateway of several workers, over connections to each of them."""

    def __init__(self, gateway: Gateway, fake: FakeProcess | None = None, streams: int = 0) -> None:
        self.gateway = gateway
        if fake is not None:  # whose streams do not end by themselves before the key is withdrawn
            fault = {"path": list(STREAMS), "infinite": True, "tokens_per_second": 20}
            httpx.post(f"{fake.url}/_fake/faults", json=fault, trust_env=False, verify=NO_TLS).raise_for_status()
        self.streams = streams
        self.clients: list[httpx.AsyncClient] = []
        self._worker_of: dict[int, int] = {}

    async def connect(self, each: int = 2) -> None:
        """So many connections to each worker, kept alive. Those that are there are kept, if they still lead there."""
        _, key = self.gateway.make_key(f"connecting {time.monotonic_ns()}")
        self._worker_of.clear()
        asked: dict[int, int] = dict.fromkeys(self.gateway.worker_pids(), 0)
        before, self.clients = self.clients, []
        async with asyncio.timeout(PATIENCE):
            while before or min(asked.values()) < each:
                client = before.pop() if before else self.gateway.client(limits=httpx.Limits(keepalive_expiry=None))
                _, worker = await self._until(client, key, 200)
                if asked[worker] >= each:
                    await client.aclose()
                    continue
                asked[worker] += 1
                self.clients.append(client)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()

    async def trial(self) -> Trial:
        await self.connect()
        row, key = self.gateway.make_key(f"trial {time.monotonic_ns()}")
        # So that Redis is asked for each call.
        fields = {"scope": "key", "key": row, "metric": "requests", "window": "day", "amount": 10**6}
        self.gateway.rows(Limit).create(**fields)
        trial = Trial()
        async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
            await asyncio.gather(*(self._until(client, key, 200) for client in self.clients))
            answers = await asyncio.gather(
                *(self._begin(stack, number, key) for number in range(self.streams)),
            )
            trial.ids = [answer.headers["x-request-id"] for answer, _ in answers]
            self.gateway.rows(ApiKey).filter(pk=row.pk).update(revoked_at=timezone.now())
            since = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                probes = [tasks.create_task(self._until(client, key, 401, since)) for client in self.clients]
                ends = [tasks.create_task(self._end(answer, lines, since)) for answer, lines in answers]
        trial.workers = len({worker for _, worker in (probe.result() for probe in probes)})
        trial.refused = [seconds for seconds, _ in (probe.result() for probe in probes)]
        for seconds, fault in (end.result() for end in ends):
            trial.cut.append(seconds)
            trial.faults += [fault] if fault else []
        return trial

    async def check_records(self, trials: list[Trial]) -> list[str]:
        """What is wrong with the records of the streams that were cut."""
        ids = [request_id for trial in trials for request_id in trial.ids]
        found = await self.gateway.wait_for_records(len(ids), PATIENCE, id__in=ids)
        return [f"{row.pk}: {row.outcome} {row.error}" for row in found if row.outcome != "cut" or row.status != 200]

    async def _probe(self, client: httpx.AsyncClient, key: str) -> httpx.Response:
        return await client.get("/api/version", headers={"authorization": f"Bearer {key}"})

    async def _until(self, client: httpx.AsyncClient, key: str, status: int, since: float = 0.0) -> tuple[float, int]:
        """(seconds until a worker answers so, which worker)"""
        while (answer := await self._probe(client, key)).status_code != status:
            await asyncio.sleep(0.01)
        return time.monotonic() - since, self._worker(answer)

    async def _begin(self, stack: AsyncExitStack, number: int, key: str) -> tuple[httpx.Response, Any]:
        """A stream on a connection of its own, after its first line."""
        path, fields = list(STREAMS.items())[number % len(STREAMS)]
        client = await stack.enter_async_context(self.gateway.client(key))
        body = {"model": "llama3.2", "messages": MESSAGES, **fields}
        answer = await stack.enter_async_context(client.stream("POST", path, json=body))
        lines = answer.aiter_lines()
        assert answer.status_code == 200, await answer.aread()
        await anext(lines)
        return answer, lines

    async def _end(self, answer: httpx.Response, lines: Any, since: float) -> tuple[float, str]:
        """(seconds until it ended, what is wrong with its end)"""
        last = ""
        try:
            async for line in lines:
                last = line or last
        except httpx.TransportError as exc:
            return time.monotonic() - since, f"{answer.url.path}: {exc!r}"
        seconds = time.monotonic() - since
        try:
            said = json.loads(last.removeprefix("data: "))
        except ValueError:
            said = {}
        return seconds, "" if "error" in said else f"{answer.url.path} ended with {last[:200]}"

    def _worker(self, answer: httpx.Response) -> int:
        """Which worker answered, by the connection."""
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        # Again, because the kernel's listing of sockets may miss some while others come and go.
        while port not in self._worker_of:
            for pid in self.gateway.worker_pids():
                for connection in self._sockets(pid):
                    if connection.raddr:
                        self._worker_of[connection.raddr.port] = pid
        return self._worker_of[port]

    def _sockets(self, pid: int) -> list[Any]:
        """Those of a process on the port of the gateway."""
        found = psutil.Process(pid).net_connections("tcp")
        return [each for each in found if each.laddr and each.laddr.port == self.gateway.port]
