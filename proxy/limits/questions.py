"""The commands by which calls are counted in Redis: reserve.lua and settle.lua, with their keys and arguments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from proxy.limits.connection import GAP, Argument, Command, with_gaps
from proxy.limits.plans import Place
from proxy.limits.rules import METRICS, Rule, Window

HOLDERS = "ogw:holders"
COUNTERS = "ogw:counters"
# A counter is kept so long after its window has ended: clocks of several machines differ.
KEPT_SECONDS = 600
# Of these each call takes one.
ONE_EACH = ("requests", "concurrent")

Asked = tuple[list[Argument], list[Argument]]
"""Keys and arguments of a script."""


class Questions(NamedTuple):
    """What Redis is asked by the calls of a plan, written once."""

    places: list[Place]
    holder: str
    is_concurrent: bool  # whether one of them bounds calls at a time
    varying: tuple[str, ...]  # the metrics of which calls take different amounts
    reserve: bytes  # gaps: call id, now, needed of each that varies
    settle: bytes  # gaps: call id, used of each that varies


def questions_of(places: list[Place], recorded: Mapping[str, int], holder: str, shas: Mapping[str, str]) -> Questions:
    taken = [(rule, window, 1 if rule.metric in ONE_EACH else GAP) for rule, window in places]
    used: dict[str, Argument] = {metric: 0 if metric in ONE_EACH else GAP for metric in METRICS}
    return Questions(
        places,
        holder,
        any(rule.metric == "concurrent" and rule.enforced for rule, _ in places),
        tuple(rule.metric for rule, _ in places if rule.metric not in ONE_EACH),
        with_gaps(evalsha(shas["reserve"], *reserving(holder, GAP, GAP, taken, recorded))),
        with_gaps(evalsha(shas["settle"], *settling(holder, GAP, places, used))),
    )


def reserving(
    holder: str,
    call_id: str,
    now: Argument,
    taken: Iterable[tuple[Rule, Window, Argument]],
    recorded: Mapping[str, int],
    *,
    again: bool = False,
) -> Asked:
    """`taken`: how much of which place. `recorded`: what the roll-ups know, by key of the window. `again`: what runs,
    however full its limits are."""
    keys: list[Argument] = [HOLDERS, COUNTERS]
    arguments: list[Argument] = [holder, call_id, now]
    for rule, window, needed in taken:
        if again and rule.metric == "requests":
            continue  # was made, and stayed counted
        keys.append(key_of(window))
        known = recorded.get(window.key, 0)
        arguments += [
            rule.amount if rule.enforced and not again else -1,
            needed,
            needed if rule.metric == "requests" else 0,
            window.part,
            window.oldest,
            int(window.ends) + KEPT_SECONDS if window.ends else 0,
            # Calls that were refused in the line have records, but are not counted as requests.
            -known if rule.metric == "requests" else known,
        ]
    return keys, arguments


def settling(
    holder: str, call_id: str, places: Iterable[Place], used: Mapping[str, Argument], *, may_be_known: bool = False
) -> Asked:
    """`used`: by metric; empty where all is given back. `may_be_known`: it was sent before."""
    keys: list[Argument] = []
    arguments: list[Argument] = [holder, call_id, int(may_be_known)]
    for rule, window in places:
        keys.append(key_of(window))
        # A request stays counted even where nobody knows any more that it was held.
        of_all = used and rule.metric == "requests"
        arguments += ["all" if of_all else used.get(rule.metric, 0), window.part]
    return keys, arguments


def evalsha(sha: str, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Command:
    return ("EVALSHA", sha, len(keys), *keys, *arguments)


def key_of(window: Window) -> str:
    return f"ogw:limit:{window.key}"
