"""A key is withdrawn while 4 workers serve it, with Redis up, killed and stopped (threats A7, S7): when do all know?

python benchmarks/revocation.py --trials 100
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import processes  # noqa: F401 - sets Django up
from benchmarks.databases import Databases
from benchmarks.kill9 import bar
from tests.live.crashes import FakeProcess
from tests.live.gateway import Gateway
from tests.live.revocations import STATES, Revocations, Trial, redis_is
from tests.redis_server import RedisServer

WITHIN = 1.0
COLUMNS = (
    "trials", "streams", "refused: median", "max", "streams cut: median", "max", "over 1 s", "wrong ends",
    "wrong records", "workers missed",
)  # fmt: skip


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="for each state of Redis (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=12, help="in flight when the key is withdrawn")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--database", default="sqlite", choices=("sqlite", "postgresql"))
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"])
    redis, fake = RedisServer().start(), FakeProcess()
    rows: dict[str, tuple[object, ...]] = {}
    bad = 0
    try:
        with Databases(directory) as databases:
            home = directory / "revocation"
            home.mkdir()
            env = {"REDIS_URL": redis.url}
            gateway = Gateway(home, databases.new(options.database), workers=options.workers, **env)
            gateway.make_backend(fake.url, slots=256)
            await asyncio.to_thread(gateway.start)
            revocations = Revocations(gateway, fake, options.streams)
            try:
                began, total = time.monotonic(), options.trials * len(STATES)
                for place, state in enumerate(STATES):
                    trials = []
                    with redis_is(redis, state):
                        for number in range(options.trials):
                            bar(place * options.trials + number, total, began, f"Redis {state}")
                            trials.append(await revocations.trial())
                        wrong = await revocations.check_records(trials)
                    rows[state] = row(trials, wrong, options.workers)
                    bad += any(rows[state][-4:-1])
                    for text in [fault for trial in trials for fault in trial.faults][:3] + wrong[:3]:
                        print(f"\n    {text}")
                bar(total, total, began, "")
            finally:
                await revocations.close()
                gateway.close()
    finally:
        fake.close()
        redis.remove()
    report(rows)
    return bool(bad)


def row(trials: list[Trial], wrong: list[str], workers: int) -> tuple[object, ...]:
    """One figure a trial: the last connection of the last worker, and the last stream."""
    refused = [max(trial.refused) for trial in trials]
    cut = [max(trial.cut) for trial in trials]
    late = sum(max(pair) > WITHIN for pair in zip(refused, cut, strict=True))
    return (
        len(trials), sum(len(trial.cut) for trial in trials),
        f"{statistics.median(refused):.3f} s", f"{max(refused):.3f} s",
        f"{statistics.median(cut):.3f} s", f"{max(cut):.3f} s",
        late, sum(len(trial.faults) for trial in trials), len(wrong),
        sum(workers - trial.workers for trial in trials),
    )  # fmt: skip


def report(rows: dict[str, tuple[object, ...]]) -> None:
    print(f"{'Redis':8}  " + "  ".join(COLUMNS))
    for state, values in rows.items():
        shown = (f"{value!s:>{len(column)}}" for value, column in zip(values, COLUMNS, strict=True))
        print(f"{state:8}  " + "  ".join(shown))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
