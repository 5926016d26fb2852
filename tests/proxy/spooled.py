"""Rows as the ledger spools them."""

import itertools
import uuid

from proxy.ledger.rows import AT, COLUMNS

NOON = 1_773_144_000.0  # 2026-03-10 12:00 UTC

_numbers = itertools.count(1)

DEFAULTS = {
    "client_request_id": "",
    "started_at": NOON,
    "finished_at": NOON + 1.5,
    "tenant_id": 1,
    "tenant_name": "acme",
    "user_id": None,
    "user_name": "",
    "end_user": "",
    "api_key_id": 1,
    "key_name": "key",
    "backend": "one",
    "model_asked": "llama3.2",
    "model": "llama3.2:latest",
    "model_digest": "",
    "endpoint": "/api/chat",
    "dialect": "ollama",
    "stream": True,
    "status": 200,
    "outcome": "ok",
    "error": "",
    "attempts": 1,
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "estimated": False,
    "client_address": "127.0.0.1",
    "user_agent": "",
    "price_id": None,
    "cost_nano": None,
    "currency": "EUR",
    "routing": "",
}


def make_row(**fields):
    values = {"id": uuid.uuid4().hex, **DEFAULTS, **fields}
    return [values.get(name, 0) for name in COLUMNS]


def opened_row(**fields):
    """As it is when the call is admitted."""
    return make_row(**{"status": 0, "outcome": "interrupted", "error": "interrupted", "completion_tokens": 0, **fields})


def value(row, name):
    return row[AT[name]]
