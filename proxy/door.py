"""Who may come to the entrances that are no calls: pages, their API, sockets, metrics, health (threat I6).

The rules for all are the same ones, in the same object, that calls are judged by (admission.check_address). Two things
differ, and both are about not locking the administrator out for good: the machine itself always reaches the pages,
unless a rule denies loopback by name; and where this process has not read the rules yet, they are read from the table.
"""

import time

from channels.db import database_sync_to_async

from proxy.client import Scope
from proxy.client_address import SAID_BY_PROXIES, Address, client_address
from proxy.configuration import Configuration
from proxy.ip_rules import IPRules
from proxy.rules_watch import ip_rules
from proxy.runtime import Runtime
from proxy.snapshot import current_rules, rules_for_all


def address_of(scope: Scope, configuration: Configuration) -> Address | None:
    """Whose request it is, as calls are judged by it."""
    peer = scope.get("client")
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    trusted, trusts_unix = configuration.trusted_proxies, configuration.trusts_unix
    return client_address(str(peer[0]) if peer else "", forwarded, trusted, trusts_unix=trusts_unix)


async def lets_in(runtime: Runtime, scope: Scope, *, counts: bool = True) -> bool:
    """Whether the rules for all let somebody in. Raises DatabaseError where nobody knows them.

    `counts`: whether this is a visit, or another look at somebody who is in already.
    """
    rules = await rules_of(runtime)
    address = address_of(scope, runtime.configuration)
    passed = rules.admits(address) if counts else rules.allow(address)
    return passed or is_way_back(rules, address, scope)


async def rules_of(runtime: Runtime) -> IPRules:
    if runtime.snapshot is None:
        await runtime.start()
    if runtime.snapshot is not None:
        return runtime.snapshot.ip_all
    rules: IPRules = await database_sync_to_async(from_table)()
    return rules


def from_table() -> IPRules:
    """Raises DatabaseError."""
    return rules_for_all(current_rules(ip_rules(), time.time()))


def is_way_back(rules: IPRules, address: Address | None, scope: Scope) -> bool:
    """Whether somebody shut out is at the machine itself. A proxy there would lend its place to everybody."""
    if address is None or not address.is_loopback:
        return False
    if not SAID_BY_PROXIES.isdisjoint(name for name, _ in scope["headers"]):
        return False
    entry = rules.decide(address)
    # "deny 0.0.0.0/0" is how people lock themselves out; who denies 127.0.0.0/8 means it.
    return entry is None or entry.network is None or not entry.network.is_loopback
