"""The fake as a process of its own."""

import argparse
import asyncio
import signal
from typing import Any

from proxy.fake_ollama.server import DEFAULT_MODELS, FakeOllama


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=11434, help="0 takes any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS), metavar="NAME[:TAG],…")
    parser.add_argument("--slots", type=int, default=1, help="calls a loaded model runs at once (OLLAMA_NUM_PARALLEL)")
    parser.add_argument("--vram", type=float, default=16.0, metavar="GIB")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="0 is as fast as possible")
    parser.add_argument("--tokens", type=int, default=16, help="length of an answer that nobody cuts short")
    parser.add_argument("--max-queue", type=int, default=512, help="length of the load queue (OLLAMA_MAX_QUEUE)")
    parser.add_argument("--ollama-version", default="0.33.0", help="what /api/version says")
    parser.add_argument("--no-log-bodies", action="store_true", help="keep no request bodies, for load tests")


def run(options: dict[str, Any]) -> None:
    fake = FakeOllama(
        options["port"],
        host=options["host"],
        models=[name for name in options["models"].split(",") if name],
        slots=options["slots"],
        vram=options["vram"],
        load_seconds=options["load_seconds"],
        tokens_per_second=options["tokens_per_second"],
        tokens=options["tokens"],
        max_queue=options["max_queue"],
        version=options["ollama_version"],
        log_bodies=not options["no_log_bodies"],
    )
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(fake))
    else:
        uvloop.run(serve(fake))


async def serve(fake: FakeOllama) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await fake.start()
    print(f"listening on {fake.url}", flush=True)
    await ended.wait()
    await fake.stop()
