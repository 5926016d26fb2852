"""kill -9 under load, and the account afterwards: what backends saw and clients got, against records and roll-ups."""

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import orjson
from django.db.models import Sum

from tests.live.gateway import ROOT, Gateway
from tests.no_tls import NO_TLS
from usage.models import DailyUsage, UsageBucket, UsageRecord
from usage.rollups import reconcile

CALLS = ("/api/chat", "/api/generate", "/api/embed")
TOKENS_PER_SECOND = 50
SETTLED_SECONDS = 30


class FakeProcess:
    """The fake Ollama in a process of its own, which outlives the gateway."""

    def __init__(self) -> None:
        options = ("--slots", "256", "--tokens-per-second", str(TOKENS_PER_SECOND), "--models", "llama3.2")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy.fake_ollama", "--port", "0", "--no-log-bodies", *options],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = self.process.stdout.readline().split()[-1]
        self._seen = 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def ids_since_last_time(self) -> list[str]:
        """Our request ids of the calls it saw, in order."""
        calls = httpx.get(
            f"{self.url}/_fake/calls", params={"since": self._seen}, trust_env=False, verify=NO_TLS
        ).json()
        self._seen = calls[-1]["index"] + 1 if calls else self._seen
        return [dict(call["headers"])["x-request-id"] for call in calls if call["target"] in CALLS]


@dataclass
class Account:
    """What clients saw; filled by `Clients`."""

    whole: dict[str, tuple[int, int]] = field(default_factory=dict)  # id → the counts that came with the answer
    begun: set[str] = field(default_factory=set)  # ids of answers whose head arrived
    refused: Counter[int] = field(default_factory=Counter)  # statuses other than 200
    broken: int = 0  # calls that ended in an error of the connection
    longest_gap: float = 0.0  # seconds between two lines of a stream


class Clients:
    """So many clients that call again and again, through any outage, and note what they got."""

    def __init__(self, gateway: Gateway, key: str, streams: int, seed: int) -> None:
        self.account = Account()
        self.running = 0
        self._stop = False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
        self._http = gateway.client(key, limits=limits)
        self._tasks = [asyncio.create_task(self._call_on(random.Random(seed * 1000 + n))) for n in range(streams)]

    async def stop(self) -> Account:
        """Lets the calls in flight end."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        await self._http.aclose()
        return self.account

    async def until_running(self, count: int, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while self.running < count:
                await asyncio.sleep(0.01)

    async def _call_on(self, rng: random.Random) -> None:
        while not self._stop:
            body = {
                "model": "llama3.2",
                "messages": [{"role": "user", "content": "x" * rng.randint(1, 400)}],
                "stream": rng.random() < 0.8,
                "options": {"num_predict": rng.randint(1, 60)},
            }
            try:
                await self._call(body)
            except httpx.HTTPError:
                self.account.broken += 1
                await asyncio.sleep(0.05)  # the gateway is gone

    async def _call(self, body: dict[str, object]) -> None:
        async with self._http.stream("POST", "/api/chat", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self.account.refused[answer.status_code] += 1
                return
            request_id = answer.headers["x-request-id"]
            self.account.begun.add(request_id)
            self.running += 1
            try:
                last, before = "", 0.0
                async for line in answer.aiter_lines():
                    now = time.monotonic()
                    if before:
                        self.account.longest_gap = max(self.account.longest_gap, now - before)
                    last, before = line, now
            finally:
                self.running -= 1
        final = orjson.loads(last)
        assert final.get("done") is True, final
        self.account.whole[request_id] = final["prompt_eval_count"], final["eval_count"]


@dataclass
class Verdict:
    """One or several trials. All but the first four have to be 0."""

    kills: int = 0
    seen_by_backend: int = 0
    whole: int = 0
    interrupted: int = 0
    missing: int = 0  # calls without a record
    doubled: int = 0  # calls that the roll-ups count more than once, or records too many
    wrong: int = 0  # the client got all of it, and the record says otherwise
    unlikely: int = 0  # outcomes that a kill cannot leave
    roll_up_differences: int = 0
    refused: int = 0  # answers other than 200 while the gateway was up
    examples: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.missing or self.doubled or self.wrong or self.unlikely or self.roll_up_differences)

    def add(self, other: "Verdict") -> None:
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)


async def kill_once(gateway: Gateway, fake: FakeProcess, key: str, streams: int, seed: int) -> Verdict:
    """One trial on a started gateway, which is started again; load before, at and after the kill."""
    rng = random.Random(seed)
    clients = Clients(gateway, key, streams, seed)
    await clients.until_running(streams * 3 // 4)
    await asyncio.sleep(rng.uniform(0.2, 1.2))
    gateway.kill()
    gateway.start(wait=False)
    await asyncio.to_thread(gateway.wait_until_ready)
    await clients.until_running(streams // 2)  # while the new process takes over what the old one left
    account = await clients.stop()
    return await judge(gateway, fake.ids_since_last_time(), account)


async def judge(gateway: Gateway, seen: list[str], account: Account) -> Verdict:
    verdict = Verdict(kills=1, seen_by_backend=len(set(seen)), whole=len(account.whole))
    verdict.refused = sum(account.refused.values())
    expected = {*seen, *account.begun}
    records = await settled_records(gateway, expected)
    verdict.missing = len(expected - records.keys())
    verdict.examples += [f"{request_id}: no record" for request_id in sorted(expected - records.keys())[:3]]
    for request_id, record in records.items():
        counts = account.whole.get(request_id)
        if counts is not None:
            said = (record.outcome, record.estimated, record.prompt_tokens, record.completion_tokens)
            if said != ("ok", False, *counts):
                verdict.wrong += 1
                verdict.examples.append(f"{request_id}: the client got {counts}, the record says {said}")
        elif record.outcome not in ("ok", "interrupted"):
            verdict.unlikely += 1
            verdict.examples.append(f"{request_id}: {record.outcome} {record.error}")
        verdict.interrupted += record.outcome == "interrupted"
    rows = gateway.rows(UsageRecord)
    total = rows.count()
    for table in (UsageBucket, DailyUsage):
        summed = gateway.rows(table).aggregate(sum=Sum("requests"))["sum"] or 0
        verdict.doubled += abs(summed - total)
    differences = reconcile(gateway.alias)
    verdict.roll_up_differences = len(differences)
    verdict.examples += map(str, differences[:3])
    quarantine = gateway.directory / "spool" / "quarantine.jsonl"
    if quarantine.exists():
        verdict.unlikely += 1
        verdict.examples.append(f"quarantined: {quarantine.read_text()[:300]}")
    return verdict


async def settled_records(gateway: Gateway, expected: set[str]) -> dict[str, UsageRecord]:
    """The records of these calls, once they are there and nothing waits in a spool any more."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while True:
        empty = not any(path.stat().st_size for path in (gateway.directory / "spool").rglob("*.log"))
        found = {record.pk.hex: record for record in gateway.rows(UsageRecord).filter(pk__in=expected)}
        if (empty and found.keys() >= expected) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)
