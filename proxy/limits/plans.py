"""Where the calls of a key are counted. The same from call to call, until the first window turns or rolls on."""

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from proxy.limits.rules import Rule, Window

T = TypeVar("T")
Place = tuple[Rule, Window]

MAX_PLANS = 10_000


class Plan(NamedTuple, Generic[T]):
    rules: tuple[Rule, ...]
    recorded: Mapping[str, int]
    since: float  # epoch seconds
    until: float
    is_varied: bool  # whether its rules are all enforced, each for another metric
    details: T  # what an engine makes of the places


class Plans(Generic[T]):
    """`make`: the details of places, at a moment."""

    def __init__(self, zone: str, make: Callable[[list[Place], float], T]) -> None:
        self.zone = zone
        self.make = make
        # What the roll-ups say was used in windows of the calendar, by key: budgets outlive processes.
        self.recorded: Mapping[str, int] = {}
        # By id of the rules, which the plan keeps alive, model, and address where one of the rules is for each address.
        self._plans: dict[tuple[int, str, str | None], Plan[T]] = {}

    def of(self, rules: tuple[Rule, ...], model: str, address: str, now: float) -> Plan[T]:
        """Of the rules that hold for a call."""
        plan = self._plans.get((id(rules), model, None)) or self._plans.get((id(rules), model, address))
        if (
            plan is not None
            and plan.since <= now < plan.until
            and plan.rules is rules
            and plan.recorded is self.recorded
        ):
            return plan
        places = []
        until = float("inf")
        for rule in rules:
            if rule.model and rule.model != model:
                continue
            window = rule.window_at(now, address, self.zone)
            places.append((rule, window))
            until = min(until, rule.turns_after(window))
        enforced = {rule.metric for rule, _ in places if rule.enforced}
        plan = Plan(rules, self.recorded, now, until, len(enforced) == len(places), self.make(places, now))
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()  # of keys, rules and addresses that are no more, most of them
        whose = address if any(rule.per_address for rule, _ in places) else None
        self._plans[id(rules), model, whose] = plan
        return plan

    def clear(self) -> None:
        self._plans.clear()
