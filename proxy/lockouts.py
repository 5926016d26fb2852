"""Whom a change of the IP rules would shut out: said before it is made."""

import time
from collections.abc import Iterable, Sequence

from django.http import HttpRequest

from proxy.client_address import Address, client_address, parse_address
from proxy.configuration import Configuration
from proxy.ip_rules import IPRules
from proxy.rules_watch import ip_rules
from proxy.snapshot import IPRuleRow, current_rules
from tenants.models import ApiKey, IPRule, Tenant
from usage.models import UsageRecord

# How many of the newest calls are looked at, and how many of their addresses are named.
CALLS_LOOKED_AT = 200
ADDRESSES_NAMED = 5
# (tenant id, key id, whether of its owners); the first two None: for all.
Scope = tuple[int | None, int | None, bool]
FOR_ALL: Scope = (None, None, False)


def address_of(request: HttpRequest, configuration: Configuration) -> Address | None:
    """Where a page is looked at, as the rules see it."""
    forwarded = [request.META.get("HTTP_X_FORWARDED_FOR", "")]
    trusted, trusts_unix = configuration.trusted_proxies, configuration.trusts_unix
    return client_address(request.META.get("REMOTE_ADDR", ""), forwarded, trusted, trusts_unix=trusts_unix)


def of_change(
    address: Address | None,
    *,
    without: Iterable[IPRule] = (),
    added: IPRule | None = None,
    is_program: bool = False,
) -> list[str]:
    """What is to be said before rules are deleted, or one is saved. `address`: of who does it. A program that changes
    rules does not make the calls of a tenant or key as well: its own address matters for the rules for all alone."""
    before = ip_rules()
    gone = {rule.pk for rule in without}
    after = [rule for rule in before if rule.id not in gone and (added is None or rule.id != added.pk)]
    if added is not None:
        after.append(row_of(added))
    changed = {_scope(rule) for rule in {*before} ^ {*after} if rule.acts_as_id is None}
    now = time.time()
    found: list[str] = []
    for scope in sorted(changed, key=str):
        rules = rules_of(scope, before, now), rules_of(scope, after, now)
        own = [] if is_program and scope != FOR_ALL else _of_own(scope, *rules, address, is_program=is_program)
        found += own
        found += _of_scope(scope, *rules, told=address if own else None)
    return found


def row_of(rule: IPRule) -> IPRuleRow:
    ends = rule.expires_at.timestamp() if rule.expires_at else None
    return IPRuleRow(
        rule.cidr, rule.action, rule.tenant_id, rule.key_id, rule.acts_as_id, ends, rule.pk or 0, rule.by_owners
    )


def rules_of(scope: Scope, rows: Iterable[IPRuleRow], now: float) -> IPRules:
    """The rules of one scope that are in force."""
    current = current_rules(rows, now)
    return IPRules(
        (rule.network, rule.action, rule.id) for rule in current if rule.acts_as_id is None and _scope(rule) == scope
    )


def _scope(rule: IPRuleRow) -> Scope:
    return rule.tenant_id, rule.key_id, rule.by_owners


def _of_own(scope: Scope, before: IPRules, after: IPRules, address: Address | None, *, is_program: bool) -> list[str]:
    if not before.allow(address) or after.allow(address):
        return []
    place = f"{address}, where you are now," if address is not None else "A Unix socket, by which you are here,"
    for_all = "calls and from this API" if is_program else "calls and from these pages"
    what = for_all if scope == FOR_ALL else f"calls of {_name(scope)}"
    return [f"{place} would be shut out from {what}."]


def _of_scope(scope: Scope, before: IPRules, after: IPRules, told: Address | None) -> list[str]:
    found = []
    name = _name(scope)
    lost = [
        seen for seen in _seen_lately(scope)
        if seen != told and before.allow(seen) and not after.allow(seen)
    ]  # fmt: skip
    if lost:
        named = ", ".join(map(str, lost[:ADDRESSES_NAMED])) + (" and others" if len(lost) > ADDRESSES_NAMED else "")
        found.append(f"Addresses that calls of {name} came from lately would be shut out: {named}.")
    if not before.allows_others and after.allows_others:
        found.append(f"No rule for {name} would allow any more: every address that none denies could call.")
    return found


def _name(scope: Scope) -> str:
    tenant, key, _ = scope
    if tenant is not None:
        return f"the tenant {Tenant.objects.get(pk=tenant)}"
    return f"the key {ApiKey.objects.get(pk=key).prefix}" if key is not None else "everybody"


def _seen_lately(scope: Scope) -> Sequence[Address]:
    """Each address once, newest first. By an index."""
    tenant, key, _ = scope
    rows = UsageRecord.objects.order_by("-started_at", "-id")
    if tenant is not None:
        rows = rows.filter(tenant=tenant)
    elif key is not None:
        rows = rows.filter(api_key=key)
    texts = dict.fromkeys(rows.values_list("client_address", flat=True)[:CALLS_LOOKED_AT])
    return [address for text in texts if text and (address := parse_address(text)) is not None]
