"""What the calls of this process add up to. One look-up and some additions a call; all else is done when it is read."""

from typing import Any

from proxy.call import Call
from proxy.ledger.rows import AT, Row
from proxy.metrics import layout
from proxy.metrics.labels import OTHER, Labels
from proxy.metrics.layout import COST_NANO, COUNT, SIZE

NONE = "none"  # the model and backend of calls that have none
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# The most kinds of calls, and of (address, endpoint, status), that are told apart.
MOST_CELLS = 2000
MOST_BY_ADDRESS = 2000
# Thousandths of a token a second. Beyond it a backend has not told the truth; and sums must stay below 64 bits (B).
MOST_RATE = 1_000_000_000

# Outcomes of answers that were made for another call: how fast they come says nothing of a model.
_NOT_GENERATED = ("cached", "coalesced")

# (method, endpoint, status, stream, model, backend, outcome, error)
Kind = tuple[str, str, int, bool, str, str, str, str]

_PROMPT, _COMPLETION, _COST = AT["prompt_tokens"], AT["completion_tokens"], AT["cost_nano"]
_QUEUE, _LOAD, _DECODE, _FIRST = AT["queue_us"], AT["load_us"], AT["decode_us"], AT["first_token_us"]
_TOTAL, _OURS, _IN, _OUT = AT["total_us"], AT["gateway_us"], AT["bytes_in"], AT["bytes_out"]
_ADDRESS, _TENANT = AT["client_address"], AT["tenant_name"]

_DURATION, _FIRST_TOKEN, _WAIT, _LOADING = layout.DURATION, layout.FIRST_TOKEN, layout.WAIT, layout.LOAD
_OVERHEAD, _PER_TOKEN, _RATE = layout.OVERHEAD, layout.PER_TOKEN, layout.RATE
_PROMPTS, _COMPLETIONS = layout.PROMPT, layout.COMPLETION
_SIZE_IN, _SIZE_OUT = layout.BYTES_IN, layout.BYTES_OUT


class Tally:
    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.cells: dict[Kind, list[int]] = {}
        self.addresses: dict[tuple[str, str, int], int] = {}
        # By (tenant, outcome): calls, prompt and completion tokens, nano-units of cost.
        self.tenants: dict[tuple[str, str], list[int]] = {}
        # Numbers that are counted elsewhere, by name and label: gauges.counters.
        self.counters: dict[tuple[str, str], int] = {}

    def admitted(self, call: Call, row: Row, status: int, outcome: str, error: str) -> None:
        """A call has ended that has a record. How it ended is said besides: what was done to it afterwards, when its
        client left over the last bytes, is nothing to count."""
        route, model, backend = call.route, call.model, call.backend
        assert route is not None
        kind = (
            call.method, route.path, status, call.stream,
            NONE if model is None else model.served.canonical, NONE if backend is None else backend.name,
            outcome, error,
        )  # fmt: skip
        values = self.cells.get(kind)
        if values is None:
            values = self._cell(kind, known=call.model_was_found)
        values[COUNT] += 1
        duration, prompt, completion, sent = row[_TOTAL], row[_PROMPT], row[_COMPLETION], row[_OUT]
        cost = row[_COST] or 0
        values[COST_NANO] += cost
        values[_DURATION.sum] += duration
        values[_DURATION.bucket(duration)] += 1
        ours = row[_OURS]
        values[_OVERHEAD.sum] += ours
        values[_OVERHEAD.bucket(ours)] += 1
        received = row[_IN]
        values[_SIZE_IN.sum] += received
        values[_SIZE_IN.bucket(received)] += 1
        values[_SIZE_OUT.sum] += sent
        values[_SIZE_OUT.bucket(sent)] += 1
        queued = row[_QUEUE]
        if queued:
            values[_WAIT.sum] += queued
            values[_WAIT.bucket(queued)] += 1
        else:
            values[_WAIT.first] += 1
        if load := row[_LOAD]:
            values[_LOADING.sum] += load
            values[_LOADING.bucket(load)] += 1
        if prompt:
            values[_PROMPTS.sum] += prompt
            values[_PROMPTS.bucket(prompt)] += 1
        if completion:
            values[_COMPLETIONS.sum] += completion
            values[_COMPLETIONS.bucket(completion)] += 1
            first, decoding = row[_FIRST], row[_DECODE]
            if call.stream:
                if first:
                    values[_FIRST_TOKEN.sum] += first
                    values[_FIRST_TOKEN.bucket(first)] += 1
                decoding = decoding or duration - first  # other dialects do not say
            if decoding and outcome not in _NOT_GENERATED:
                each = decoding // completion
                values[_PER_TOKEN.sum] += each
                values[_PER_TOKEN.bucket(each)] += 1
                rate = min(completion * 1_000_000_000 // decoding, MOST_RATE)
                values[_RATE.sum] += rate
                values[_RATE.bucket(rate)] += 1
        self._count_address(row[_ADDRESS] or NONE, route.path, status)
        tenant = self.tenants.get((row[_TENANT], outcome))
        if tenant is None:
            tenant = self.tenants.setdefault((self.labels.of("tenant", row[_TENANT]), outcome), [0, 0, 0, 0])
        tenant[0] += 1
        tenant[1] += prompt
        tenant[2] += completion
        tenant[3] += cost

    def answered(self, call: Call, status: int, duration_us: int, outcome: str, error: str = "") -> None:
        """A request has ended that has no record: a listing, or a refusal (`error`: its code)."""
        method = call.method if call.method in METHODS else OTHER
        endpoint = call.route.path if call.route is not None else OTHER
        kind = (method, endpoint, status, call.stream, NONE, NONE, outcome, error)
        values = self.cells.get(kind)
        if values is None:
            values = self._cell(kind, known=False)
        values[COUNT] += 1
        values[_DURATION.sum] += duration_us
        values[_DURATION.bucket(duration_us)] += 1
        self._count_address(call.address_text or NONE, endpoint, status)

    def _count_address(self, address: str, endpoint: str, status: int) -> None:
        key = (address, endpoint, status)
        seen = self.addresses.get(key)
        if seen is None:
            key = (self.labels.of("ip", address), endpoint, status)
            if len(self.addresses) >= MOST_BY_ADDRESS and key not in self.addresses:
                key = (OTHER, endpoint, status)
            seen = self.addresses.get(key, 0)
        self.addresses[key] = seen + 1

    def _cell(self, kind: Kind, *, known: bool) -> list[int]:
        """The numbers of a kind of calls that was not met before, or has no name of its own.

        `known`: whether a backend has the model; a name that was made up takes no label.
        """
        method, endpoint, status, stream, model, backend, outcome, error = kind
        if model != NONE:
            model = self.labels.of("model", model, may_take=known)
        if backend != NONE:
            backend = self.labels.of("backend", backend)
        kind = (method, endpoint, status, stream, model, backend, outcome, error)
        if len(self.cells) >= MOST_CELLS and kind not in self.cells:
            kind = (method, endpoint, status, stream, OTHER, OTHER, outcome, error)
        values = self.cells.get(kind)
        if values is None:
            values = self.cells[kind] = [0] * SIZE
        return values

    def told(self) -> dict[str, Any]:
        return _told(self)


class Sum:
    """What several processes have told, added up."""

    def __init__(self) -> None:
        self.cells: dict[tuple[Any, ...], list[int]] = {}
        self.addresses: dict[tuple[Any, ...], int] = {}
        self.tenants: dict[tuple[Any, ...], list[int]] = {}
        self.counters: dict[tuple[Any, ...], int] = {}

    def add(self, told: dict[str, Any]) -> None:
        for mine, theirs in ((self.cells, told["cells"]), (self.tenants, told["tenants"])):
            for *key, values in theirs:
                have = mine.get(tuple(key))
                mine[tuple(key)] = values if have is None else [a + b for a, b in zip(have, values, strict=True)]
        for counts, theirs in ((self.addresses, told["addresses"]), (self.counters, told["counters"])):
            for *key, count in theirs:
                counts[tuple(key)] = counts.get(tuple(key), 0) + count

    def told(self) -> dict[str, Any]:
        return _told(self)


def _told(counted: Tally | Sum) -> dict[str, Any]:
    """All of it, as JSON can hold it. Asked in other threads than that of the calls: lists of items are made at once,
    while that thread stands still."""
    return {
        "cells": [[*kind, values] for kind, values in list(counted.cells.items())],
        "addresses": [[*key, count] for key, count in list(counted.addresses.items())],
        "tenants": [[*key, values] for key, values in list(counted.tenants.items())],
        "counters": [[*key, count] for key, count in list(counted.counters.items())],
    }
