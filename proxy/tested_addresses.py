"""“Test this address”: which rule decides about it, in each scope that has rules."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.client_address import Address
from proxy.explaining.explain import judged
from proxy.lockouts import FOR_ALL, Scope, rules_of
from proxy.rules_watch import ip_rules
from tenants.models import ApiKey, Tenant

# Scopes that one page shows.
MOST_SCOPES = 200


@dataclass(frozen=True, slots=True)
class Judgement:
    scope: str
    allows: bool
    text: str


def judgements(
    address: Address, tenants: Iterable[Tenant], keys: Iterable[ApiKey], *, for_all: bool
) -> list[Judgement]:
    """Of the rules for all, if that is for this reader, and of those tenants and keys that have some."""
    rows, now = ip_rules(), time.time()
    having = {(rule.tenant_id, rule.key_id, rule.by_owners) for rule in rows if rule.acts_as_id is None}
    subjects: list[tuple[str, int | None, int | None]] = [(f"Tenant {tenant}", tenant.pk, None) for tenant in tenants]
    subjects += [(f"Key {key.prefix}, {key.name}", None, key.pk) for key in keys]
    scopes: list[tuple[str, Scope]] = [("Everybody", FOR_ALL)] if for_all else []
    for subject, tenant_id, key_id in subjects:
        for name, owners in ((subject, False), (f"{subject}, by its owners", True)):
            if (tenant_id, key_id, owners) in having:
                scopes.append((name, (tenant_id, key_id, owners)))
    found = []
    for name, scope in scopes[:MOST_SCOPES]:
        rules = rules_of(scope, rows, now)
        entry = rules.decide(address)
        text = "No rules are in force." if entry is None else judged(entry, rules, address)
        found.append(Judgement(name, rules.allow(address), text))
    return found
