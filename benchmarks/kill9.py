"""`kill -9` of the gateway and its workers under streams, again and again: is each call recorded once (threat U1)?

python benchmarks/kill9.py --trials 100
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import processes  # noqa: F401 - sets Django up
from benchmarks.databases import Databases
from tests.live.crashes import FakeProcess, Verdict, kill_once
from tests.live.gateway import Gateway

COLUMNS = (
    "kills", "seen_by_backend", "whole", "interrupted", "missing", "doubled", "wrong", "unlikely",
    "roll_up_differences", "refused",
)  # fmt: skip


def bar(done: int, total: int, began: float, what: str) -> None:
    width = 30
    filled = width * done // total
    left = (time.monotonic() - began) / max(done, 1) * (total - done)
    text = f"\r[{'#' * filled}{'.' * (width - filled)}] {done}/{total}  {what}  {left:4.0f} s left "
    print(text, end="" if done < total else "\n", file=sys.stderr, flush=True)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="kills for each database (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--workers", default="1,4", help="shared out among the trials (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    kinds = options.databases.split(",")
    workers = [int(number) for number in options.workers.split(",")]
    directory = Path(os.environ["DATA_DIR"])
    verdicts: dict[str, Verdict] = {}
    done, total, began = 0, options.trials * len(kinds), time.monotonic()
    with Databases(directory) as databases:
        fake = FakeProcess()
        try:
            for kind in kinds:
                for place, number in enumerate(workers):
                    name = f"{kind}, {number} worker{'s' if number > 1 else ''}"
                    verdict = verdicts[name] = Verdict()
                    home = directory / f"{kind}-{number}"
                    home.mkdir()
                    gateway = Gateway(home, databases.new(kind), workers=number)
                    gateway.make_backend(fake.url, slots=256)
                    _, key = gateway.make_key()
                    await asyncio.to_thread(gateway.start)
                    try:
                        for _ in range(options.trials // len(workers) + (place < options.trials % len(workers))):
                            bar(done, total, began, name)
                            done += 1
                            verdict.add(await kill_once(gateway, fake, key, options.streams, options.seed + done))
                    finally:
                        gateway.close()
        finally:
            fake.close()
    bar(total, total, began, "")
    report(verdicts)
    return 0 if all(verdict.is_clean for verdict in verdicts.values()) else 1


def report(verdicts: dict[str, Verdict]) -> None:
    width = max(map(len, verdicts))
    print(f"{'':{width}}  " + "  ".join(COLUMNS))
    for name, verdict in verdicts.items():
        print(f"{name:{width}}  " + "  ".join(f"{getattr(verdict, column):{len(column)}}" for column in COLUMNS))
        for example in verdict.examples:
            print(f"    {example}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
