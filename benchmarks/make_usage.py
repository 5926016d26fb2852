"""Invented usage at scale, records and roll-ups, by SQL (bulk_usage.py); `manage.py reconcile` proves that they agree.

    DATABASE_URL=sqlite:////tmp/large.sqlite3 python benchmarks/make_usage.py --rows 10000000 --days 400 --tenants 50

The same for the same numbers and the same last day. The database must be migrated and hold no usage.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from django.conf import settings
from django.utils import timezone

from benchmarks import processes  # noqa: F401 - sets Django up
from benchmarks.bulk_usage import BulkUsage, Call
from proxy.ledger.rows import AT, COLUMNS, Row, cost_of
from tenants.keys import create_key
from tenants.models import ApiKey, Membership, Role, Tenant, User
from usage.costs import PriceRow, pick
from usage.models import Price, UsageRecord
from usage.rollups import day_begins, day_of, reporting_zone

KEYS_PER_TENANT = 8
BACKENDS = ("gpu1", "gpu2", "gpu3", "gpu4")
# name → price of input and output in millionths of the currency for 1 M tokens; one has none
MODELS = {
    "llama3.2:latest": (300_000, 600_000),
    "llama3.1:8b": (500_000, 1_000_000),
    "qwen3:32b": (1_000_000, 3_000_000),
    "nomic-embed-text:latest": (50_000, 0),
    "mistral:7b": (400_000, 800_000),
    "gemma3:27b": None,
}
# How calls end: (outcome, status, error, share of 10,000).
ENDS = (
    ("ok", 200, "", 9_690), ("failed", 502, "backend_failed", 90), ("cancelled", 499, "client_left", 120),
    ("timeout", 504, "timeout", 30), ("refused_in_line", 503, "line_full", 10), ("cached", 200, "", 58),
    ("cut", 401, "key_revoked", 2),
)  # fmt: skip
# Bodies of rows that a key's calls are drawn from; only ids, times and labels are made for each call.
BODIES = 120
END_USERS = 200


@dataclass
class Habit:
    key: ApiKey
    weight: float
    labelled: bool
    bodies: list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=400)
    parser.add_argument("--tenants", type=int, default=50)
    options = parser.parse_args()
    if UsageRecord.objects.exists():
        sys.exit("This database holds usage already. Use an empty one.")
    began = time.monotonic()
    chance = random.Random(f"{options.rows} {options.days} {options.tenants}")
    habits = make_habits(options.tenants, chance)
    with BulkUsage([body for habit in habits for body in habit.bodies]) as usage:
        done = 0
        for day, made in calls(habits, options.rows, options.days, chance):
            usage.add_day(day, made)
            done += len(made)
            show_progress(done, options.rows, began)
        print("\nmaking the indexes", file=sys.stderr, flush=True)
    print(f"{done:,} records in {time.monotonic() - began:.0f} s")


def show_progress(done: int, rows: int, began: float) -> None:
    taken = time.monotonic() - began
    bar = "#" * (40 * done // rows)
    left = taken / done * (rows - done)
    print(f"\r[{bar:40}] {100 * done / rows:5.1f} %  {done:,} records, {left:.0f} s left  ", end="", file=sys.stderr,
          flush=True)  # fmt: skip


def make_habits(tenants: int, chance: random.Random) -> list[Habit]:
    """Tenants of very different sizes: the first has a tenth of all calls, the last a two-hundredth."""
    prices = []
    for model, price in MODELS.items():
        if price is not None:
            row = Price.objects.create(
                model=model,
                input_nano=price[0] * 1000,
                output_nano=price[1] * 1000,
                valid_from=datetime(2000, 1, 1, tzinfo=UTC),
            )
            prices.append(PriceRow(row.pk, model, row.valid_from, "", row.input_nano, row.output_nano))
    habits = []
    for number in range(tenants):
        tenant = Tenant.objects.create(name=f"large {number + 1}")
        owner = User.objects.create_user(f"owner-{number + 1}")
        Membership.objects.create(tenant=tenant, user=owner, role=Role.OWNER)
        for place in range(KEYS_PER_TENANT):
            user = None
            if place % 2:
                user = User.objects.create_user(f"member-{number + 1}-{place}")
                Membership.objects.create(tenant=tenant, user=user, role=Role.MEMBER)
            key = create_key(tenant, f"key {place + 1}", user=user).row
            weight = (number + 1) ** -0.7 * chance.uniform(0.2, 1)
            habits.append(Habit(key, weight, place == 2, bodies_of(key, chance, prices)))
    return habits


def bodies_of(key: ApiKey, chance: random.Random, prices: list[PriceRow]) -> list[Row]:
    models = chance.sample(list(MODELS), chance.choice((1, 1, 2, 3)))
    backends = chance.sample(BACKENDS, 2)
    return [body(key, chance.choice(models), chance.choice(backends), chance, prices) for _ in range(BODIES)]


def body(key: ApiKey, model: str, backend: str, chance: random.Random, prices: list[PriceRow]) -> Row:
    outcome, status, error, _ = chance.choices(ENDS, [share for *_, share in ENDS])[0]
    prompt, answer = round(chance.lognormvariate(6, 1)), round(chance.lognormvariate(5.5, 0.8))
    decode = round(answer * chance.uniform(8_000, 30_000))
    values = {
        "client_request_id": "", "tenant_id": key.tenant_id, "tenant_name": key.tenant.name, "user_id": key.user_id,
        "user_name": key.user.username if key.user else "", "end_user": "", "api_key_id": key.pk,
        "key_name": key.name, "backend": backend, "model_asked": model.removesuffix(":latest"), "model": model,
        "model_digest": "a80c4f17acd5", "endpoint": "/api/chat", "dialect": "ollama", "stream": True,
        "status": status, "outcome": outcome, "error": error, "attempts": 1,
        "queue_us": chance.randrange(2_000_000) if chance.random() < 0.1 else 0, "load_us": 0,
        "prefill_us": prompt * 300, "decode_us": decode, "first_token_us": prompt * 300 + 2_000,
        "total_us": decode + prompt * 300 + 4_000, "gateway_us": chance.randrange(150, 900),
        "prompt_tokens": prompt, "completion_tokens": answer, "estimated": outcome not in ("ok", "cached"),
        "bytes_in": prompt * 4, "bytes_out": answer * 110, "client_address": f"10.0.{key.pk % 250}.7",
        "user_agent": "ollama-python/0.6.0", "currency": settings.GATEWAY.currency,
        "routing": '{"warm":true,"busy":1,"of":2}',
    }  # fmt: skip
    row: Row = [values.get(name) for name in COLUMNS]
    price = pick(prices, model, backend, timezone.now())
    row[AT["price_id"]] = price.id if price else None
    row[AT["cost_nano"]] = cost_of(row, price)
    return row


def calls(habits: list[Habit], rows: int, days: int, chance: random.Random) -> Iterator[tuple[date, list[Call]]]:
    """Those of each day, in the order of time, until the end of yesterday."""
    last = day_of(timezone.now(), reporting_zone()) - timedelta(days=1)
    weights = list(accumulate(habit.weight for habit in habits))
    left = rows
    for back in range(days - 1, -1, -1):
        count = left // (back + 1)
        left -= count
        day = last - timedelta(days=back)
        yield day, list(calls_of_day(day, count, habits, weights, chance))


def calls_of_day(
    day: date, count: int, habits: list[Habit], weights: list[float], chance: random.Random
) -> Iterator[Call]:
    zone = reporting_zone()
    begins = day_begins(day, zone).timestamp()
    length = day_begins(day + timedelta(days=1), zone).timestamp() - begins - 1
    moments = sorted(chance.random() * length for _ in range(count))
    labelled = [habit.labelled for habit in habits]
    for moment, whose in zip(moments, chance.choices(range(len(habits)), cum_weights=weights, k=count), strict=True):
        at = begins + moment
        label = f"customer {int(chance.random() * END_USERS)}" if labelled[whose] else ""
        pk = f"{int(at * 1000):012x}7{chance.getrandbits(76) | 1 << 75:019x}"
        yield pk, at, whose * BODIES + int(chance.random() * BODIES), label


if __name__ == "__main__":
    main()
