"""`make bench`: what a call and a streamed chunk cost in CPU, beside nginx as a plain proxy, in the same run."""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import load, processes  # noqa: E402


def unary(url: str, key: str, requests: int, padding: int = 0) -> None:
    body = processes.body(stream=False, tokens=8, padding=padding)
    asyncio.run(load.run(url, "/api/chat", body, key, requests=requests, connections=8))


def streams(url: str, key: str, count: int, tokens: int) -> None:
    body = processes.body(stream=True, tokens=tokens)
    reads = asyncio.run(load.run(url, "/api/chat", body, key, requests=count, connections=count))
    assert reads > 0.8 * count * tokens, f"{reads} reads for {count * tokens} tokens: the chunks were joined on the way"


def cost(pids: Callable[[], list[int]], work: Callable[[], None], units: int) -> float:
    """CPU microseconds per unit of work."""
    before = processes.cpu_ns(pids())
    work()
    return (processes.cpu_ns(pids()) - before) / units / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"])
    fast = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
    paced = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000", "--tokens-per-second", "80")
    sides = []
    for name, fake in (("fast", fast), ("paced", paced)):
        nginx_directory = directory / f"nginx-{name}"
        nginx_directory.mkdir()
        nginx = processes.Nginx(fake.url, nginx_directory)
        gateway, key, ready = processes.make_gateway(fake.url, directory / f"gateway-{name}")
        sides.append((nginx, gateway, key))
    idle = processes.rss_bytes(gateway.process.pid)
    print(f"start-up: ready after {ready:.2f} s; idle memory {idle / 2**20:.0f} MiB")
    try:
        figures = measure(options, sides)
        report(figures)
        idle_streams(paced, sides[1])
    finally:
        for nginx, gateway, _ in sides:
            nginx.close()
            gateway.stop()
        fast.close()
        paced.close()


def measure(options: argparse.Namespace, sides: list) -> dict[tuple[str, str], list[float]]:
    figures: dict[tuple[str, str], list[float]] = {}

    def note(what: str, who: str, value: float) -> None:
        figures.setdefault((what, who), []).append(value)

    for number in range(options.rounds + 1):
        for who in ("nginx", "gateway"):
            print(f"\rround {number} of {options.rounds}: {who}   ", end="", file=sys.stderr, flush=True)
            nginx, gateway, key = sides[0]
            url, pids = (nginx.url, lambda: nginx.pids) if who == "nginx" else (gateway.url, lambda: [gateway.process.pid])
            small = cost(pids, lambda: unary(url, key, options.requests), options.requests)
            large = cost(pids, lambda: unary(url, key, options.requests // 4, 32 << 10), options.requests // 4)
            nginx, gateway, key = sides[1]
            url, pids = (nginx.url, lambda: nginx.pids) if who == "nginx" else (gateway.url, lambda: [gateway.process.pid])
            chunks = options.streams * options.tokens
            whole = cost(pids, lambda: streams(url, key, options.streams, options.tokens), chunks)
            if number:  # the first round warms up
                note("call, 200 B", who, small)
                note("call, 32 KiB", who, large)
                note("chunk", who, whole - small / options.tokens)
    print(file=sys.stderr)
    return figures


def report(figures: dict[tuple[str, str], list[float]]) -> None:
    print(f"{'CPU µs per':14} {'nginx':>8} {'gateway':>8} {'ratio':>6}   rounds (gateway)")
    for what in ("call, 200 B", "call, 32 KiB", "chunk"):
        ours, theirs = figures[what, "gateway"], figures[what, "nginx"]
        ratio = statistics.median(ours) / statistics.median(theirs)
        rounds = " ".join(f"{value:.0f}" for value in ours)
        print(f"{what:14} {statistics.median(theirs):8.1f} {statistics.median(ours):8.1f} {ratio:6.2f}   {rounds}")


def idle_streams(fake: processes.Fake, side: tuple) -> None:
    _, gateway, key = side
    fake.fault(hang_after_chunks=1)
    pid = gateway.process.pid
    count = 500

    async def hold() -> None:
        before = processes.rss_bytes(pid)
        body = processes.body(stream=True, tokens=8)
        head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {key}\r\n\r\n"
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
