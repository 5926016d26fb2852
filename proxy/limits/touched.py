"""Limits that a past call was counted against, as they stood when it was admitted. For pages: asks the database."""

import time
from collections.abc import Sequence
from dataclasses import replace

from proxy.limits.compiling import compiled
from proxy.limits.states import LimitState
from proxy.limits.subjects import LimitTable
from tenants.models import ApiKey, Limit
from usage.routing import Counted


def touched(key: ApiKey, limits: Sequence[Counted]) -> list[LimitState]:
    """Those that are gone meanwhile, or hold for the key no more, are left out."""
    holding = Limit.objects.of_key(key).select_related("tenant", "user", "key")
    rows = holding.in_bulk([counted.limit_id for counted in limits])
    rules = {rule.id: rule for rule in LimitTable(map(compiled, rows.values()), time.time()).all()}
    return [
        LimitState(rows[counted.limit_id], replace(rules[counted.limit_id], amount=counted.amount), counted.total, None)
        for counted in limits
        if counted.limit_id in rules
    ]
