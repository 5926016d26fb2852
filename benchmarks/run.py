"""`make bench`: what a call and a streamed chunk cost in CPU, beside nginx as a plain proxy, in the same run.

Also on Daphne (`serve --server daphne`), and with httpx as the transport to the backend.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import cache, limits, load, observing, processes
from benchmarks.processes import cost
from tests.live.gateway import Gateway

# Who is measured besides nginx: server and transport.
MEASURED = ("call, 200 B", "… flat out", "call, 32 KiB", "chunk")
GATEWAYS = {"gateway": ("uvicorn", "wire"), "daphne": ("daphne", "wire"), "httpx": ("uvicorn", "httpx")}


# Calls a second that nginx and the gateway are compared at. A proxy that is driven as fast as it can go finds several
# events at each look, and its peers awake: whoever is fastest pays least, for a load that the others do not have.
RATE = 1000.0


def unary(url: str, key: str, requests: int, padding: int = 0, rate: float = 0.0) -> None:
    body = processes.body(stream=False, tokens=8, padding=padding)
    asyncio.run(load.run(url, "/api/chat", body, key, requests=requests, connections=8, rate=rate))


def streams(url: str, key: str, count: int, tokens: int) -> None:
    body = processes.body(stream=True, tokens=tokens)
    reads = asyncio.run(load.run(url, "/api/chat", body, key, requests=count, connections=count))
    assert reads > 0.8 * count * tokens, f"{reads} reads for {count * tokens} tokens: the chunks were joined on the way"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--only", choices=("calls", "limits", "observing", "cache"), help="a part of it (default: all)")
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"])
    if options.only in (None, "calls"):
        measure_calls(options, directory)
    if options.only in (None, "limits"):
        limits.measure(options, directory)
    if options.only in (None, "observing"):
        observing.measure(options, directory)
    if options.only in (None, "cache"):
        cache.measure(options, directory)


def measure_calls(options: argparse.Namespace, directory: Path) -> None:
    fast = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
    paced = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000", "--tokens-per-second", "200")
    fast_sides = Sides(fast, directory)
    paced_sides = Sides(paced, directory)
    idle = processes.rss_bytes(fast_sides.gateways["gateway"].process.pid)
    at_rest = cost(partial(fast_sides.pids, "gateway"), partial(time.sleep, 6), 6, settling=0)
    print(f"start-up: ready after {fast_sides.ready:.2f} s; idle memory {idle / 2**20:.0f} MiB")
    print(f"at rest: {at_rest / 1000:.1f} ms of CPU a second, for probes and the poll of the rules")
    try:
        report(measure(options, fast_sides, paced_sides))
        idle_streams(paced_sides)
    finally:
        fast_sides.close()
        paced_sides.close()


class Sides:
    """A plain proxy and the gateway, in its forms, in front of one backend."""

    def __init__(self, fake: processes.Fake, directory: Path) -> None:
        nginx_directory = directory / f"nginx-{fake.process.pid}"
        nginx_directory.mkdir()
        self.fake = fake
        self.nginx = processes.Nginx(fake.url, nginx_directory)
        self.gateways: dict[str, Gateway] = {}
        self.keys: dict[str, str] = {}
        for who, (server, transport) in GATEWAYS.items():
            place = directory / f"{who}-{fake.process.pid}"
            made = processes.make_gateway(fake.url, place, server=server, transport=transport)
            self.gateways[who], self.keys[who], ready = made
            if who == "gateway":
                self.ready = ready
        self.keys["nginx"] = self.keys["gateway"]  # which it passes on

    def url(self, who: str) -> str:
        return self.nginx.url if who == "nginx" else self.gateways[who].url

    def pids(self, who: str) -> list[int]:
        return self.nginx.pids if who == "nginx" else [self.gateways[who].process.pid]

    def close(self) -> None:
        self.nginx.close()
        for gateway in self.gateways.values():
            gateway.stop()
        self.fake.close()


def measure(options: argparse.Namespace, fast: Sides, paced: Sides) -> dict[tuple[str, str], list[float]]:
    """CPU µs of (what, who), a figure a round."""
    figures: dict[tuple[str, str], list[float]] = {}
    count, chunks = options.requests, options.streams * options.tokens
    for number in range(options.rounds + 1):
        for who in ("nginx", *GATEWAYS):
            print(f"\rround {number} of {options.rounds}: {who}   ", end="", file=sys.stderr, flush=True)
            url, pids = fast.url(who), partial(fast.pids, who)
            key = fast.keys[who]
            rate = RATE if who in ("nginx", "gateway") else 0.0  # the others cannot keep up
            small = cost(pids, partial(unary, url, key, count, rate=rate), count)
            flat_out = cost(pids, partial(unary, url, key, count), count)
            large = cost(pids, partial(unary, url, key, count // 4, 32 << 10, rate / 2), count // 4)
            work = partial(streams, paced.url(who), paced.keys[who], options.streams, options.tokens)
            chunk = cost(partial(paced.pids, who), work, chunks, settling=0) - small / options.tokens
            if number:  # the first round warms up
                for what, value in zip(MEASURED, (small, flat_out, large, chunk), strict=True):
                    figures.setdefault((what, who), []).append(value)
    print(file=sys.stderr)
    return figures


def report(figures: dict[tuple[str, str], list[float]]) -> None:
    columns = " ".join(f"{who:>8}" for who in GATEWAYS)
    print(f"{'CPU µs per':14} {'nginx':>8} {columns}  gateway : nginx   rounds (gateway)")
    for what in MEASURED:
        median = {who: statistics.median(figures[what, who]) for who in ("nginx", *GATEWAYS)}
        values = " ".join(f"{value:8.1f}" for value in median.values())
        rounds = " ".join(f"{value:.0f}" for value in figures[what, "gateway"])
        print(f"{what:14} {values} {median['gateway'] / median['nginx']:16.2f}   {rounds}")


def idle_streams(sides: Sides) -> None:
    gateway, key = sides.gateways["gateway"], sides.keys["gateway"]
    sides.fake.fault(hang_after_chunks=1)
    pid = gateway.process.pid
    count = 500

    async def hold() -> None:
        before = processes.rss_bytes(pid)
        body = processes.body(stream=True, tokens=8)
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {key}\r\n\r\n"
        )
        open_streams = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(head.encode() + body)
            await reader.readuntil(b'"done":false}\n')
            open_streams.append(writer)
        print(f"idle stream: {(processes.rss_bytes(pid) - before) / count / 1024:.1f} KiB each ({count} open)")
        for writer in open_streams:
            writer.close()

    asyncio.run(hold())


if __name__ == "__main__":
    main()
