"""What the cache costs and saves: CPU of a hit beside a proxied call, what it adds where it is off, how fast hits are
at 500 calls a second, and beside a machine that generates for ten seconds. Part of `make bench`; alone:

python benchmarks/run.py --only cache
"""

import argparse
import asyncio
import statistics
import sys
import time
import timeit
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx

from benchmarks import load, processes
from benchmarks.processes import cost
from proxy.consumers import SHARING
from proxy.routes import Kind

HITS_A_SECOND = 500
# Issue 7: µs of CPU that the feature may cost a call where it is off; milliseconds within which 99 of 100 hits answer.
ALLOWED_OFF = 2.0
ALLOWED_P99 = 5.0
GENERATES_SECONDS = 10
ANEW = "Cache-Control: no-cache\r\n"


def measure(options: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        fake = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
        stack.callback(fake.close)
        gateway, off, _ = processes.make_gateway(fake.url, directory / "cache")
        stack.callback(gateway.stop)
        _, kept = gateway.make_key("kept", cache_policy="all")
        until_hit(gateway.url, kept)
        figures: dict[str, list[float]] = {"off": [], "hit": [], "made anew": []}
        pids, count = partial(list, [gateway.process.pid]), options.requests
        for number in range(options.rounds + 1):
            for what, key, headers in (("off", off, ""), ("hit", kept, ""), ("made anew", kept, ANEW)):
                print(f"\rround {number} of {options.rounds}: {what}   ", end="", file=sys.stderr, flush=True)
                work = partial(call, gateway.url, key, count, headers)
                figure = cost(pids, work, count)
                if number:  # the first round warms up
                    figures[what].append(figure)
        print(file=sys.stderr)
        report(figures)
        for said, key in (("from the cache", kept), ("proxied", off)):
            took = asyncio.run(at_a_rate(gateway.url, key, HITS_A_SECOND, 10 * HITS_A_SECOND))
            allowed = f" (allowed: {ALLOWED_P99:.0f})" if key == kept else ""
            print(
                f"{said} at {HITS_A_SECOND} calls/s, one worker: median {took[len(took) // 2]:.2f} ms, "
                f"p99 {took[int(len(took) * 0.99)]:.2f} ms{allowed}, worst {took[-1]:.1f} ms"
            )
    beside_a_slow_machine(directory)


def call(url: str, key: str, count: int, headers: str) -> None:
    body = processes.body(stream=False, tokens=8)
    asyncio.run(load.run(url, "/api/chat", body, key, requests=count, connections=8, headers=headers))


def until_hit(url: str, key: str) -> None:
    deadline = time.monotonic() + 60
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
        while True:
            answer = client.post("/api/chat", content=processes.body(stream=False, tokens=8))
            if answer.headers.get("x-cache") == "HIT":
                return
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)


def report(figures: dict[str, list[float]]) -> None:
    median = {what: statistics.median(values) for what, values in figures.items()}
    print(f"{'CPU µs a call, 200 B':28} {'median':>8}   rounds")
    for what, said in (
        ("off", "proxied, no cache policy"), ("made anew", "proxied, answer kept"), ("hit", "from the cache"),
    ):  # fmt: skip
        print(f"{said:28} {median[what]:8.1f}   {' '.join(f'{value:.0f}' for value in figures[what])}")
    print(f"a hit costs {median['hit'] / median['off']:.2f} of a proxied call")
    print(f"where it is off it adds {added_where_off():.2f} µs a call (allowed: {ALLOWED_OFF:.0f})")


def added_where_off() -> float:
    """Microseconds of the statements that calls of keys without a policy execute since there is a cache."""
    key, kind = SimpleNamespace(cache=None), Kind.GENERATION
    call_ = SimpleNamespace(is_free=False, price=None, backend=key)

    def added() -> None:
        if key.cache is not None and kind in SHARING:  # consumers.py
            raise AssertionError
        call_.is_free = False  # call.py
        if call_.backend is not None:  # dispatch.py, where there was an assertion
            pass
        if call_.is_free and call_.price is not None:  # ledger/rows.py
            raise AssertionError

    count = 200_000
    return min(timeit.repeat(added, number=count, repeat=5)) / count * 1e6


class Timed(load.Connection):
    """Notes how long each answer took, from when it was due."""

    latencies: list[float]

    def send(self) -> None:
        loop = asyncio.get_running_loop()
        self.sent = max(self.due, 0.0) or loop.time()
        super().send()

    def answered(self) -> None:
        self.latencies.append((asyncio.get_running_loop().time() - self.sent) * 1000)
        super().answered()


async def at_a_rate(url: str, key: str, rate: float, requests: int) -> list[float]:
    """Milliseconds of each answer, sorted."""
    parts, body = urlsplit(url), processes.body(stream=False, tokens=8)
    head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {key}\r\n\r\n"
    connections, remaining, latencies = 10, [requests], []
    loop = asyncio.get_running_loop()
    ended = []
    for _ in range(connections):
        done = asyncio.Event()
        made = Timed(head.encode() + body, remaining, done, connections / rate)
        made.latencies = latencies
        await loop.create_connection(lambda made=made: made, parts.hostname, parts.port)
        await asyncio.sleep(1 / rate)
        ended.append(done)
    for done in ended:
        await done.wait()
    return sorted(latencies)


def beside_a_slow_machine(directory: Path) -> None:
    tokens = 20 * GENERATES_SECONDS
    fake = processes.Fake("--models", "llama3.2", "--slots", "4", "--tokens", str(tokens), "--tokens-per-second", "20")
    gateway, _, _ = processes.make_gateway(fake.url, directory / "cache-slow")
    try:
        _, key = gateway.make_key("kept", cache_policy="all")
        body = processes.body(stream=False, tokens=tokens)
        with httpx.Client(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=120
        ) as client:
            while client.get("/api/tags").status_code != 200 or not client.get("/api/tags").json()["models"]:
                time.sleep(0.05)
            took: dict[str, list[float]] = {"MISS": [], "HIT": []}
            while len(took["HIT"]) < 50:
                began = time.perf_counter()
                verdict = client.post("/api/chat", content=body).headers["x-cache"]
                took[verdict].append(time.perf_counter() - began)
        made, kept = took["MISS"][0], statistics.median(took["HIT"])
        print(f"generated in {made:.1f} s, from the cache in {kept * 1000:.1f} ms: {made / kept:,.0f} times as fast")
    finally:
        gateway.stop()
        fake.close()
