"""From a row of tenants.Limit to what the data plane knows of it."""

from proxy.limits.rules import Rule
from proxy.limits.subjects import LimitRow
from proxy.model_names import canonical_pattern
from tenants.models import Limit


def compiled(row: Limit) -> LimitRow:
    """`row` with its tenant, user and key at hand (select_related)."""
    subject = {"tenant": f"the tenant {row.tenant}", "user": f"the user {row.user}", "address": "your address"}
    rule = Rule(
        id=row.pk,
        metric=row.metric,
        window=row.window,
        seconds=row.window_seconds or 0,
        amount=row.amount,
        enforced=row.mode == Limit.Mode.ENFORCE,
        model=canonical_pattern(row.model) if row.model else "",
        per_address=row.scope == Limit.Scope.ADDRESS,
        subject=subject.get(row.scope, f"key {row.key.prefix}" if row.key else ""),
        override_amount=row.override_amount,
        override_until=row.override_until.timestamp() if row.override_until else 0.0,
        alerts=row.alert,
        by_owner=row.managed_by_id is not None,
    )
    within = row.managed_by_id if row.scope == Limit.Scope.USER else row.tenant_id
    return row.scope, within, row.user_id, row.key_id, rule
