"""What recording a call costs the gateway in CPU: its record, and its part of the roll-ups, on both databases.

Batches as the ledger makes them at a thousand calls a second, into tables that hold some already.
"""

import argparse
import os
import statistics
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import processes  # noqa: F401 - sets Django up
from benchmarks.databases import Databases
from proxy.ledger.store import Store
from tests.live.gateway import use_database
from tests.proxy.spooled import make_row

# What comes in 0.8 s at a thousand calls a second, the longest that so many wait (proxy/ledger/ledger.py).
BATCH = 800
START = 1_773_144_000.0  # 2026-03-10 12:00 UTC
# What is called: name → number of keys, share of the calls that carry an end-user label.
HABITS = {"one key": (1, 0.0), "25 keys": (25, 0.0), "25 keys, labels": (25, 1.0), "200 keys": (200, 0.0)}


def batches(keys: int, labelled: float, rounds: int) -> list[list]:
    """A second of calls apart, each key with two models on two backends."""
    made = []
    for number in range(rounds):
        at = START + number
        made.append([
            make_row(
                id=uuid.UUID(int=(int(at * 1000) << 80) | 7 << 76 | uuid.uuid4().int >> 54).hex,
                started_at=at,
                finished_at=at + 1,
                tenant_id=1 + call % keys % 5,
                api_key_id=1 + call % keys,
                user_id=None if call % keys % 3 else 1 + call % keys,
                model=f"model-{call % 2}:latest",
                backend=f"gpu{call // 2 % 2}",
                end_user=f"customer {call * 7 % 150}" if call < labelled * BATCH else "",
                decode_us=900_000,
                cost_nano=4_000,
            )
            for call in range(BATCH)
        ])  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    directory = Path(os.environ["DATA_DIR"]) / "ledger"
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{'CPU µs per call':18} {'sqlite':>10} {'postgresql':>11}   (the gateway's, of which SQLite is a part)")
    with Databases(directory) as databases:
        for name, (keys, labelled) in HABITS.items():
            figures = []
            for kind in ("sqlite", "postgresql"):
                alias = f"ledger of {kind}, {name}"
                use_database(alias, databases.new(kind))
                store = Store("Europe/Berlin", directory / "quarantine", using=alias)
                figures.append(median(store, batches(keys, labelled, options.rounds)))
                store.close()
            print(f"{name:18} {figures[0]:10.1f} {figures[1]:11.1f}", flush=True)


def median(store: Store, made: list[list]) -> float:
    costs = []
    for batch in made:
        before = time.thread_time_ns()
        store.add(batch)
        costs.append((time.thread_time_ns() - before) / len(batch) / 1000)
    return statistics.median(costs[5:])  # the first ones open connections and prepare statements


if __name__ == "__main__":
    main()
