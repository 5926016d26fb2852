"""Which limits hold for whom, as of one moment. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from proxy.limits.rules import Rule

# (scope, tenant id, user id, key id, rule). A tenant beside a user: only for that user's keys in it.
LimitRow = tuple[str, int | None, int | None, int | None, Rule]


class LimitTable:
    """`now`: epoch seconds, which overrides are judged by; nothing in it changes before `valid_until`."""

    def __init__(self, limits: Iterable[LimitRow], now: float) -> None:
        self._groups: dict[tuple[str, int], list[Rule]] = {}
        # (user, tenant) → what the owners of the tenant allow the user
        self._within: dict[tuple[int, int], list[Rule]] = {}
        ends = []
        for scope, tenant, user, key, rule in limits:
            if rule.override_amount is not None and rule.override_until > now:
                ends.append(rule.override_until)
            # By number: a budget must not begin anew because somebody was renamed.
            compiled = replace(rule.in_force(now), counted_for=counted_for(scope, tenant, user, key))
            if scope == "user" and user and tenant:
                self._within.setdefault((user, tenant), []).append(compiled)
            else:
                self._groups.setdefault((scope, user or tenant or key or 0), []).append(compiled)
        self.valid_until = min(ends, default=None)

    def of_key(self, key_id: int, prefix: str, tenant_id: int, user_id: int | None) -> tuple[Rule, ...]:
        """Its own, the defaults they do not replace, its user's, its tenant's, each address's."""
        own = self._groups.get(("key", key_id), ())
        replaced = {_kind(rule) for rule in own if not rule.by_owner}
        defaults = [
            replace(rule, subject=f"key {prefix}", counted_for=prefix)
            for rule in self._groups.get(("default", 0), ())
            if _kind(rule) not in replaced
        ]
        return (
            *own,
            *defaults,
            *self._groups.get(("user", user_id or 0), ()),
            *self._within.get((user_id or 0, tenant_id), ()),
            *self._groups.get(("tenant", tenant_id), ()),
            *self._groups.get(("address", 0), ()),
        )

    def all(self) -> Iterable[Rule]:
        """As they are kept: a default is not yet anybody's."""
        for rules in (*self._groups.values(), *self._within.values()):
            yield from rules


def counted_for(scope: str, tenant: int | None, user: int | None, key: int | None) -> str:
    """Whose counter a limit has."""
    return f"{scope} {user or tenant or key or 0}"


def _kind(rule: Rule) -> tuple[str, str, int, str]:
    return rule.metric, rule.window, rule.seconds, rule.model
