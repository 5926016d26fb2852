"""The database goes away under load and comes back (threats S1, S2): what do clients notice, what is lost?

python benchmarks/outage.py --seconds 60
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import processes  # noqa: F401 - sets Django up
from benchmarks.databases import Databases
from tests.live.crashes import FakeProcess
from tests.live.gateway import Gateway
from tests.live.outages import endure, hung, locked, stopped

Outage = Callable[[Databases, Gateway], AbstractContextManager[None]]

# what happens → (database, how)
OUTAGES: dict[str, tuple[str, Outage]] = {
    "PostgreSQL stopped": ("postgresql", lambda databases, gateway: stopped(databases.cluster)),
    "PostgreSQL hung": ("postgresql", lambda databases, gateway: hung(databases.cluster)),
    "SQLite locked": ("sqlite", lambda databases, gateway: locked(gateway)),
}
COLUMNS = ("calls", "not 200", "broken", "lost", "doubled", "wrong", "roll-ups off", "longest gap", "stored after")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"])
    rows: dict[str, tuple[object, ...]] = {}
    bad = 0
    with Databases(directory) as databases:
        fake = FakeProcess()
        try:
            for number, (name, (kind, outage)) in enumerate(OUTAGES.items()):
                print(
                    f"[{number + 1}/{len(OUTAGES)}] {name} for {options.seconds:.0f} s …", file=sys.stderr, flush=True
                )
                home = directory / f"outage-{number}"
                home.mkdir()
                gateway = Gateway(home, databases.new(kind), workers=options.workers)
                gateway.make_backend(fake.url, slots=256)
                _, key = gateway.make_key()
                await asyncio.to_thread(gateway.start)
                try:
                    began = time.monotonic()
                    verdict, account = await endure(
                        gateway, fake, key, outage(databases, gateway), options.seconds, options.streams
                    )
                    after = time.monotonic() - began - options.seconds
                finally:
                    gateway.close()
                refused = dict(account.refused)
                rows[name] = (
                    verdict.seen_by_backend, refused or 0, account.broken, verdict.missing, verdict.doubled,
                    verdict.wrong + verdict.unlikely + verdict.interrupted, verdict.roll_up_differences,
                    f"{account.longest_gap:.2f} s", f"{after:.1f} s",
                )  # fmt: skip
                bad += bool(refused or account.broken or verdict.interrupted) or not verdict.is_clean
                for example in verdict.examples:
                    print(f"    {example}")
        finally:
            fake.close()
    width = max(map(len, rows))
    print(f"{'':{width}}  " + "  ".join(COLUMNS))
    for name, row in rows.items():
        values = (f"{value!s:>{len(column)}}" for value, column in zip(row, COLUMNS, strict=True))
        print(f"{name:{width}}  " + "  ".join(values))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
