"""The lists that we answer ourselves, from what the probes know, as Ollama would write them. Pure.

A key sees what it may use: the models of others are not for it to know (T4).
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from proxy.dialects.base import go_json
from proxy.errors import BadRequest, NotFound
from proxy.fleet import Fleet
from proxy.fleet.merging import Item, epoch
from proxy.model_names import DEFAULT_NAMESPACE, InvalidModelName, parse
from proxy.routes import Kind
from proxy.snapshot import Key, Model, Snapshot

ROOT = b"Ollama is running"
KINDS = frozenset((Kind.VERSION, Kind.TAGS, Kind.PS, Kind.STATUS, Kind.MODELS, Kind.MODEL))
_WILDCARDS = frozenset("*?[")


def answer(kind: Kind, fleet: Fleet, key: Key, rules: Snapshot) -> bytes:
    """The body of a listing."""
    if kind is Kind.VERSION:
        return go_json({"version": fleet.version})
    if kind is Kind.STATUS:
        allowed = key.may_use_cloud
        return go_json({"cloud": {"disabled": not allowed, "source": "none" if allowed else "config"}})
    if kind is Kind.MODELS:
        entries = [*_installed(fleet, key), *_aliases(fleet, key, rules)]
        return go_json({"object": "list", "data": entries or None}) + b"\n"
    items = fleet.installed() if kind is Kind.TAGS else fleet.warm()
    return go_json({"models": [item for name, item in items if _sees(key, name, item)]})


def model(segment: str, fleet: Fleet, key: Key, rules: Snapshot) -> bytes:
    """The body of /v1/models/{model}. `segment`: the last of the path, as it came. Raises BadRequest, NotFound."""
    asked = unquote_to_bytes(segment.encode("latin-1")).decode("utf-8", "replace")
    if "/" in asked:
        # Ollama's route takes one segment, and so no namespace.
        raise NotFound("model_not_found", f"model '{asked[:200]}' not found")
    try:
        found = rules.model(key, asked, fleet.survey)
    except InvalidModelName as exc:
        raise BadRequest(str(exc), "invalid_model_name") from None
    item = dict(fleet.installed()).get(found.served.canonical) if found.allowed else None
    if item is None or not _sees_served(key, found, item):
        raise NotFound("model_not_found", f"model '{found.asked.shown}' not found")
    return go_json(_entry(asked, found.served.canonical, item)) + b"\n"


def _sees(key: Key, name: str, item: Item) -> bool:
    return key.may_use(name) and (key.may_use_cloud or not _is_remote(name, item))


def _sees_served(key: Key, found: Model, item: Item) -> bool:
    return found.allowed and (key.may_use_cloud or not _is_remote(found.served.canonical, item))


def _is_remote(name: str, item: Item) -> bool:
    return bool(item.get("remote_host") or item.get("remote_model")) or parse(name).cloud


def _installed(fleet: Fleet, key: Key) -> Iterator[dict[str, Any]]:
    for name, item in fleet.installed():
        if _sees(key, name, item):
            yield _entry(str(item.get("model") or item.get("name")), name, item)


def _aliases(fleet: Fleet, key: Key, rules: Snapshot) -> Iterator[dict[str, Any]]:
    """Those that are one name: apps of this family offer what is in this list, and nothing else."""
    installed = dict(fleet.installed())
    for pattern, _ in sorted(rules.tables.aliases):
        if not _WILDCARDS.isdisjoint(pattern):
            continue
        alias = pattern.strip()
        try:
            found = rules.model(key, alias, fleet.survey)
        except InvalidModelName:
            continue  # the form refuses it; raw SQL may not have
        item = installed.get(found.served.canonical)
        if item is not None and found.asked.canonical not in installed and _sees_served(key, found, item):
            yield _entry(alias, found.served.canonical, item)


def _entry(shown: str, canonical: str, item: Item) -> dict[str, Any]:
    _, _, namespace = canonical.rpartition("/")[0].rpartition("/")
    created = int(epoch(str(item.get("modified_at", ""))))
    return {"id": shown, "object": "model", "created": created, "owned_by": namespace or DEFAULT_NAMESPACE}
