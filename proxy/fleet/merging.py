"""The lists of several backends as one. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

Item = dict[str, Any]
"""One model in an answer to /api/tags or /api/ps."""


def merged(lists: Iterable[Mapping[str, Item]], moment: str) -> list[tuple[str, Item]]:
    """(canonical name, item), each name once: the latest by the field `moment`; latest first."""
    latest: dict[str, tuple[float, Item]] = {}
    for items in lists:
        for name, item in items.items():
            at = epoch(str(item.get(moment, "")))
            if name not in latest or latest[name][0] < at:
                latest[name] = at, item
    ordered = sorted(latest.items(), key=lambda pair: pair[1][0], reverse=True)
    return [(name, item) for name, (_, item) in ordered]


@lru_cache(maxsize=4096)
def epoch(text: str) -> float:
    """Seconds of a time as Ollama writes it, with whatever offset; 0 for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
