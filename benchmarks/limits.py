"""What limits add to the CPU of a call: counted in memory, and in Redis. Part of `make bench`; alone:

python benchmarks/run.py --only limits
"""

import argparse
import asyncio
import statistics
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from pathlib import Path

from benchmarks import load, processes
from benchmarks.processes import cost
from proxy import limits
from tenants.models import Limit
from tests.live.gateway import Gateway
from tests.redis_server import RedisServer

# Of the key that has some, all of them far away.
LIMITS = (("requests", "minute"), ("tokens", "day"), ("concurrent", "none"))
# Many short rounds in turns, flat out: what is looked for is smaller than what else a machine does to a call.
SLICES = 3
# µs of CPU a call that issue 5 allows.
ALLOWED = {"memory": 15, "redis": 100}
WATCHED_CALLS = 200


@dataclass
class Side:
    """One gateway with two keys. The key without limits is the base: same process, same settings."""

    gateway: Gateway
    plain: str
    limited: str
    base: list[float] = field(default_factory=list)  # µs a call, one figure a round
    more: list[float] = field(default_factory=list)


def call(url: str, key: str, count: int) -> None:
    body = processes.body(stream=False, tokens=8)
    asyncio.run(load.run(url, "/api/chat", body, key, requests=count, connections=8))


def measure(options: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        fake = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
        stack.callback(fake.close)
        redis = RedisServer().start()
        stack.callback(redis.remove)
        sides = {}
        for name, env in (("memory", {}), ("redis", {"REDIS_URL": redis.url, "REDIS_PATIENCE_SECONDS": "5"})):
            gateway, plain, _ = processes.make_gateway(fake.url, directory / f"limits-{name}", **env)
            stack.callback(gateway.stop)
            sides[name] = Side(gateway, plain, limited_key(gateway))
        for side in sides.values():
            until_known(side)
        redis_cpu = rounds(options, sides, redis)
        report(sides, redis_cpu, scripts_run(sides["redis"], redis))


def limited_key(gateway: Gateway) -> str:
    row, key = gateway.make_key("limited")
    for metric, window in LIMITS:
        gateway.rows(Limit).create(scope="key", key=row, metric=metric, window=window, amount=10**12)
    return key


def until_known(side: Side) -> None:
    """Waits until the gateway knows the key with its limits, and its backend."""

    async def ask() -> None:
        async with side.gateway.client(side.limited) as client, asyncio.timeout(60):
            while True:
                answer = await client.post("/api/chat", content=processes.body(stream=False, tokens=8))
                if answer.status_code == 200 and "x-ratelimit-limit-tokens" in answer.headers:
                    return
                await asyncio.sleep(0.05)

    asyncio.run(ask())


def rounds(options: argparse.Namespace, sides: dict[str, Side], redis: RedisServer) -> list[float]:
    """Fills the figures of both sides; returns what a call costs Redis itself."""
    assert redis.process is not None
    count, redis_cpu, last = options.requests // SLICES, [], options.rounds * SLICES
    for number in range(last + 1):
        for name, side in sides.items():
            print(f"\rround {number} of {last}: {name}   ", end="", file=sys.stderr, flush=True)
            pids = partial(list, [side.gateway.process.pid])
            before = processes.cpu_ns([redis.process.pid])
            more = cost(pids, partial(call, side.gateway.url, side.limited, count), count)
            in_redis = (processes.cpu_ns([redis.process.pid]) - before) / count / 1000
            base = cost(pids, partial(call, side.gateway.url, side.plain, count), count)
            if number:  # the first round warms up
                side.base.append(base)
                side.more.append(more)
                if name == "redis":
                    redis_cpu.append(in_redis)
    print(file=sys.stderr)
    return redis_cpu


def scripts_run(side: Side, redis: RedisServer) -> Counter[str]:
    """How often calls had Redis run each script, as MONITOR tells."""
    folder = Path(limits.__file__).parent
    names = {sha1(path.read_bytes()).hexdigest(): path.stem for path in folder.glob("*.lua")}
    found: Counter[str] = Counter()
    with redis.client() as client, client.monitor() as monitor:
        call(side.gateway.url, side.limited, WATCHED_CALLS)
        client.ping()
        while (said := monitor.next_command()["command"]) != "PING":
            words = said.split()
            if words[0].upper() == "EVALSHA":
                found[names.get(words[1], "unknown")] += 1
    return found


def report(sides: dict[str, Side], redis_cpu: list[float], scripts: Counter[str]) -> None:
    what = ", ".join(metric for metric, _ in LIMITS)
    print(f"{'CPU µs a call, 200 B':24} {'no limits':>10} {'with':>8} {'increment':>10} {'allowed':>8}   rounds")
    for name, side in sides.items():
        increments = [more - base for more, base in zip(side.more, side.base, strict=True)]
        shown = " ".join(f"{value:+.0f}" for value in increments)
        print(
            f"{f'with limits ({name})':24} {statistics.median(side.base):10.1f} {statistics.median(side.more):8.1f} "
            f"{statistics.median(increments):+10.1f} {f'+{ALLOWED[name]}':>8}   {shown}"
        )
    a_call = {name: scripts[name] / WATCHED_CALLS for name in ("reserve", "settle")}
    print(
        f"{len(LIMITS)} limits ({what}). Redis: {a_call['reserve']:.2f} round trips a call (reserve), "
        f"{a_call['settle']:.2f} told without waiting (settle); {statistics.median(redis_cpu):.0f} µs of its own CPU"
    )
