"""Invented usage of the demo's keys: the same at each start for the same day, stored by the ledger's own code."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from proxy.ledger.rows import AT, COLUMNS, Row, cost_of
from proxy.ledger.store import Store
from tenants.models import ApiKey
from usage.costs import PriceRow, pick
from usage.models import Price
from usage.rollups import day_of

DAYS = 30
BATCH = 500


@dataclass(frozen=True, slots=True)
class Habit:
    """How a key is used. `models`: (name, share of the calls, tokens a second)."""

    calls: int  # on a working day
    models: tuple[tuple[str, float, int], ...]
    prompt_tokens: int  # the median
    answer_tokens: int
    dialect: str
    endpoint: str
    user_agent: str
    network: str
    failing: float = 0.01
    nightly: bool = False


def store(habits: Sequence[tuple[ApiKey, Habit]], now: datetime, zone: ZoneInfo, currency: str, spare: Path) -> None:
    """Usage of the last 30 days until now. What is there already stays as it is. `spare`: for rows that fit nowhere."""
    prices = [
        PriceRow(row.pk, row.model, row.valid_from, row.backend, row.input_nano, row.output_nano)
        for row in Price.objects.all()
    ]
    batch: list[Row] = []
    into = Store(zone.key, spare)
    today = day_of(now, zone)
    for back in range(DAYS, -1, -1):
        for key, habit in habits:
            for row in _day(key, habit, today - timedelta(days=back), zone, prices, currency):
                if row[AT["finished_at"]] <= now.timestamp() - 60:
                    batch.append(row)
                if len(batch) >= BATCH:
                    into.add(batch)
                    batch = []
    if batch:
        into.add(batch)


def _day(
    key: ApiKey, habit: Habit, day: date, zone: ZoneInfo, prices: Sequence[PriceRow], currency: str
) -> Iterator[Row]:
    chance = random.Random(f"{key.prefix} {day}")  # noqa: S311 - not a secret, and the same each time
    weekend = day.weekday() >= 5
    busy = habit.calls * (0.25 if weekend and not habit.nightly else 1) * chance.uniform(0.6, 1.3)
    for _ in range(round(busy)):
        hour = chance.gauss(2.5, 0.8) if habit.nightly else chance.gauss(13.5, 3)
        # From midnight on, as the clock of that day goes.
        at = datetime.combine(day, datetime.min.time(), zone) + timedelta(hours=min(max(hour, 0.0), 23.9))
        yield _row(key, habit, at, chance, prices, currency)


def _row(
    key: ApiKey, habit: Habit, at: datetime, chance: random.Random, prices: Sequence[PriceRow], currency: str
) -> Row:
    model, _, speed = chance.choices(habit.models, [share for _, share, _ in habit.models])[0]
    embeds = "embed" in model
    prompt = max(1, round(habit.prompt_tokens * chance.lognormvariate(0, 0.6)))
    answer = 0 if embeds else max(1, round(habit.answer_tokens * chance.lognormvariate(0, 0.7)))
    outcome, status, error = "ok", 200, ""
    if chance.random() < habit.failing:
        outcome, status, error = chance.choice(
            [("failed", 502, "backend_failed"), ("cancelled", 499, "client_left"), ("timeout", 504, "timeout")]
        )
        answer //= 3
    decode = answer / (speed * chance.uniform(0.85, 1.1))
    prefill = prompt / (speed * 25)
    load = chance.uniform(1.5, 4) if chance.random() < 0.02 else 0.0
    queue = chance.expovariate(2) if chance.random() < 0.08 else 0.0
    total = queue + load + prefill + decode + 0.004
    started = at.timestamp() + chance.random() * 59
    values = {
        "id": f"{int(started * 1000):012x}7{chance.getrandbits(12):03x}{8 + chance.getrandbits(2):x}"
        f"{chance.getrandbits(60):015x}",
        "client_request_id": "",
        "started_at": started,
        "finished_at": started + total,
        "tenant_id": key.tenant_id,
        "tenant_name": key.tenant.name,
        "user_id": key.user_id,
        "user_name": key.user.username if key.user else "",
        "end_user": "",
        "api_key_id": key.pk,
        "key_name": key.name,
        "backend": chance.choice(("fake-1", "fake-2")),
        "model_asked": model.removesuffix(":latest"),
        "model": model,
        "model_digest": "",
        "endpoint": "/api/embed" if embeds else habit.endpoint,
        "dialect": "ollama" if embeds else habit.dialect,
        "stream": not embeds,
        "status": status,
        "outcome": outcome,
        "error": error,
        "attempts": 1,
        "queue_us": _us(queue),
        "load_us": _us(load),
        "prefill_us": _us(prefill),
        "decode_us": _us(decode),
        "first_token_us": _us(queue + load + prefill + 0.002),
        "total_us": _us(total),
        "gateway_us": chance.randrange(150, 900),
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "estimated": outcome != "ok",
        "bytes_in": prompt * 4 + 180,
        "bytes_out": answer * 110 + 300,
        "client_address": f"{habit.network}.{chance.randrange(10, 14)}",
        "user_agent": habit.user_agent,
        "currency": currency,
        "routing": "",
    }
    price = pick(prices, model, str(values["backend"]), datetime.fromtimestamp(started, UTC))
    row: Row = [values.get(name) for name in COLUMNS]
    row[AT["price_id"]] = price.id if price else None
    row[AT["cost_nano"]] = cost_of(row, price)
    return row


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
