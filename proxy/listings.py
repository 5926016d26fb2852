"""The lists that we answer ourselves, from what the probes know, as Ollama would write them. Pure."""

from typing import Any

from proxy.dialects.base import go_json
from proxy.fleet import Fleet
from proxy.routes import Kind
from proxy.snapshot import Key

ROOT = b"Ollama is running"


def answer(kind: Kind, fleet: Fleet, key: Key) -> bytes:
    """The body of a listing, with only the models that a key may use."""
    if kind is Kind.VERSION:
        return go_json({"version": fleet.version})
    items = fleet.installed() if kind is Kind.TAGS else fleet.warm()
    allowed: list[dict[str, Any]] = [item for name, item in items if key.may_use(name)]
    return go_json({"models": allowed})
