"""A usage record as the list of values that is spooled and stored. Pure."""

import time
from datetime import datetime
from typing import Any

import orjson

from proxy.call import Call
from usage.costs import PriceRow, charged

COLUMNS = (
    "id", "client_request_id", "started_at", "finished_at",
    "tenant_id", "tenant_name", "user_id", "user_name", "end_user", "api_key_id", "key_name",
    "backend", "model_asked", "model", "model_digest",
    "endpoint", "dialect", "stream", "status", "outcome", "error", "attempts",
    "queue_us", "load_us", "prefill_us", "decode_us", "first_token_us", "total_us", "gateway_us",
    "prompt_tokens", "completion_tokens", "estimated", "bytes_in", "bytes_out", "client_address", "user_agent",
    "price_id", "cost_nano", "currency", "routing",
)  # fmt: skip

Row = list[Any]
"""Values in the order of COLUMNS; times are epoch seconds, the id is 32 hex digits."""

AT = {name: position for position, name in enumerate(COLUMNS)}

# What a record says of its routing is at most so long; with backends' names at their longest it is half of it.
ROUTING_BYTES = 1024


def opened(call: Call, currency: str) -> Row:
    """What is known when a call is admitted."""
    key, model, route = call.key, call.model, call.route
    assert key is not None
    assert route is not None
    return [
        call.id, call.client_request_id, call.started_epoch, call.started_epoch,
        key.tenant_id, key.tenant_name, key.user_id, key.user_name, call.end_user, key.id, key.name,
        "", call.asked, model.served.canonical if model is not None else "", "",
        route.path, call.dialect.name, call.stream, 0, "interrupted", "interrupted", 0,
        0, 0, 0, 0, 0, 0, 0,
        -(-call.prompt_bytes // 4), 0, True, call.bytes_in, 0,
        call.address_text or None, call.user_agent,
        call.price.id if call.price else None, None, currency, "",
    ]  # fmt: skip


def closed(row: Row, call: Call) -> Row:
    """Completes an opened row with how the call ended."""
    duration = time.monotonic() - call.started_at
    counts = call.meter.counts() if call.meter is not None else None
    row[3] = call.started_epoch + duration
    if call.backend is not None:
        row[11] = call.backend.name
    row[14] = call.model_digest
    row[18:22] = call.status, call.outcome, call.error, call.attempts
    queue = call.queue_seconds
    first = call.first_byte_at - call.started_at if call.first_byte_at else 0.0
    ours = (call.dispatched_at or time.monotonic()) - call.started_at - queue
    if counts is None:
        row[22:29] = _us(queue), 0, 0, 0, _us(first), _us(duration), _us(ours)
        row[29:32] = 0, 0, False
    else:
        if counts.odd and not call.error:
            row[20] = "odd_usage"
        loads = counts.load_ns // 1000, counts.prefill_ns // 1000, counts.decode_ns // 1000
        row[22:29] = _us(queue), *loads, _us(first), _us(duration), _us(ours)
        row[29:32] = counts.prompt_tokens, counts.completion_tokens, counts.estimated
    row[32:34] = call.bytes_in, call.bytes_out
    row[36] = call.price.id if call.price else None
    row[37] = 0 if call.is_free and call.price is not None else cost_of(row, call.price)
    row[39] = routing_of(call)
    return row


def routing_of(call: Call) -> str:
    """Why its backend, what was tried before, and the limits that it was counted against: read by usage/routing.py."""
    held = call.reservation.held if call.reservation is not None else ()
    if not held and not call.failed_attempts:
        if call.chosen is None:
            return ""
        warm, busy, holders = call.chosen
        return f'{{"warm":{"true" if warm else "false"},"busy":{busy},"of":{holders}}}'
    said: dict[str, Any] = {}
    if call.chosen is not None:
        said["warm"], said["busy"], said["of"] = call.chosen
    if call.failed_attempts:
        said["failed"] = call.failed_attempts
    if held:
        said["limits"] = [(rule.id, total, rule.amount) for rule, _, _, total in held]
    written = orjson.dumps(said)
    if len(written) > ROUTING_BYTES:
        said.pop("limits", None)
        written = orjson.dumps(said)
    return written.decode() if len(written) <= ROUTING_BYTES else ""


def note(call: Call) -> list[Any]:
    """How far a running call is."""
    tokens = call.meter.counted if call.meter is not None else 0
    name = call.backend.name if call.backend is not None else ""
    # Not time.time(), which may step (U10).
    epoch = call.started_epoch + time.monotonic() - call.started_at
    return [call.id, epoch, tokens, call.bytes_out, name]


def interrupted(row: Row, price: PriceRow | None, progress: tuple[float, int, int, str] | None) -> Row:
    """Completes the row of a call that a dead process left open.

    `progress`: the last note of it: epoch seconds, completion tokens so far, bytes out, backend.
    """
    if progress is not None:
        row[AT["finished_at"]], row[AT["completion_tokens"]], row[AT["bytes_out"]], row[AT["backend"]] = progress
    row[AT["total_us"]] = _us(row[AT["finished_at"]] - row[AT["started_at"]])
    row[AT["cost_nano"]] = cost_of(row, price)
    return row


def cost_of(row: Row, price: PriceRow | None) -> int | None:
    """Cost in nano-units of the tokens and the GPU time on a row; None without a price."""
    return charged(price, row[29], row[30], row[23] + row[24] + row[25])


def completed(row: Row) -> Row:
    """A row that an older version of the gateway left in the spool."""
    return [*row, *[""] * (len(COLUMNS) - len(row))] if len(row) < len(COLUMNS) else row


def price_entry(price: PriceRow | None) -> list[Any] | None:
    """A price as the spool keeps it."""
    if price is None:
        return None
    return [price.id, price.input_nano, price.output_nano, price.gpu_second_nano, price.kwh_nano, price.watts]


def price_of_entry(entry: list[Any] | None) -> PriceRow | None:
    if entry is None:
        return None
    price_id, input_nano, output_nano, gpu_second_nano, kwh_nano, watts = entry
    # Which model and when matters no more: this is the price that was chosen.
    return PriceRow(price_id, "", datetime.min, "", input_nano, output_nano, gpu_second_nano, kwh_nano, watts)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000) if seconds > 0 else 0
