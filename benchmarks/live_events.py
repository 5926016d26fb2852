"""What the live page costs the gateway: CPU a call without its parts, with nobody watching, and with one page open.

The three are driven in turns, at 200 calls a second, in the same run. The bar is 5 µs a call with nobody watching.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import load, processes
from benchmarks.processes import cost
from tests.live.gateway import Gateway
from tests.live.signed_in import make_person, sign_in

RATE = 200.0
BAR = 5.0
# A gateway that shows nobody anything: it neither listens to other processes nor draws a picture.
WITHOUT = """
import os, runpy, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "gateway_site.settings"
import django
django.setup()
from proxy.live.board import Board
Board.start = Board.tick = lambda self: None
sys.argv = sys.argv[1:]
runpy.run_path("manage.py", run_name="__main__")
"""


class GatewayWithout(Gateway):
    def command(self) -> list[str]:
        return ["-c", WITHOUT, *super().command()]


def start(kind: type[Gateway], backend: str, directory: Path) -> tuple[Gateway, str]:
    gateway = kind(directory, processes.migrated_sqlite(directory / "gateway.sqlite3"), PROBE_SECONDS="2")
    gateway.make_backend(backend, slots=4096)
    _, key = gateway.make_key()
    return gateway.start(), key


@asynccontextmanager
async def watching(gateway: Gateway, session: str):
    """One page of an administrator is open, and read."""
    from websockets.asyncio.client import connect

    pictures = []

    async def read() -> None:
        async for text in socket:
            pictures.append(len(json.loads(text)["calls"]))

    address = gateway.url.replace("http:", "ws:") + "/ws/live"
    headers = {"Cookie": f"sessionid={session}"}
    async with connect(address, origin=gateway.url, additional_headers=headers, proxy=None) as socket:
        reading = asyncio.create_task(read())
        yield pictures
        reading.cancel()


def calls(gateway: Gateway, key: str, count: int, session: str = "") -> None:
    body = processes.body(stream=False, tokens=8)
    driving = partial(load.run, gateway.url, "/api/chat", body, key, requests=count, connections=8, rate=RATE)

    async def watched() -> None:
        async with watching(gateway, session) as pictures:
            await driving()
        assert pictures, "the page was shown nothing"

    asyncio.run(watched() if session else driving())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1000, help="a round and side, 200 a second")
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"])
    fake = processes.Fake("--models", "llama3.2", "--slots", "4096", "--tokens", "1000")
    sides = {}
    for name, kind in (("without", GatewayWithout), ("nobody", Gateway)):
        (directory / name).mkdir()
        sides[name] = start(kind, fake.url, directory / name)
    gateway, key = sides["nobody"]
    person = make_person(gateway, "root")
    type(person).objects.using(gateway.alias).filter(pk=person.pk).update(is_staff=True, is_superuser=True)
    session = sign_in(gateway, person)
    turns = {
        "without": (*sides["without"], ""), "nobody": (gateway, key, ""), "one page": (gateway, key, session),
    }  # fmt: skip
    figures: dict[str, list[float]] = {name: [] for name in turns}
    try:
        for number in range(options.rounds + 1):
            # Whoever begins a round has a colder machine: in turns.
            for name in list(turns)[number % 3 :] + list(turns)[: number % 3]:
                print(f"\rround {number} of {options.rounds}: {name}   ", end="", file=sys.stderr, flush=True)
                side, secret, reader = turns[name]
                work = partial(calls, side, secret, options.calls, reader)
                value = cost(lambda pid=side.process.pid: [pid], work, options.calls)
                if number:  # the first round warms up
                    figures[name].append(value)
    finally:
        print(file=sys.stderr)
        for side, _ in sides.values():
            side.stop()
        fake.close()
    report(figures)


def report(figures: dict[str, list[float]]) -> None:
    print(f"CPU µs a call at {RATE:.0f} calls a second, medians of {len(figures['nobody'])} rounds")
    for name, values in figures.items():
        spread = statistics.quantiles(values, n=4)
        extra = [value - base for value, base in zip(values, figures["without"], strict=True)]
        print(f"{name:9} {statistics.median(values):8.1f}  (quartiles {spread[0]:.0f}–{spread[2]:.0f})"
              f"   more than without: {statistics.median(extra):+.1f}")  # fmt: skip
    extra = [value - base for value, base in zip(figures["nobody"], figures["without"], strict=True)]
    print(
        f"bar: nobody watching, at most {BAR:.0f} µs a call: {'held' if statistics.median(extra) <= BAR else 'BROKEN'}"
    )


if __name__ == "__main__":
    main()
