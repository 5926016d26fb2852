"""What a file may speak of."""

from proxy.declared.kinds.backends import Backends
from proxy.declared.kinds.base import Change, Entry, Kind
from proxy.declared.kinds.catalogue import Aliases, Defaults, PassThroughs, Policies
from proxy.declared.kinds.keys import Keys
from proxy.declared.kinds.people import Tenants, Users
from proxy.declared.kinds.prices import Prices
from proxy.declared.kinds.rules import IPRules, Limits

__all__ = ["KINDS", "Change", "Entry", "Keys", "Kind"]

# In the order in which they refer to each other.
KINDS: tuple[type[Kind], ...] = (
    Tenants,
    Users,
    Keys,
    Backends,
    IPRules,
    Limits,
    Aliases,
    Defaults,
    Policies,
    Prices,
    PassThroughs,
)
