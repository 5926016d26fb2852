"""What the limits of this process have counted, for pages and the API that are served by it."""

from collections.abc import Sequence

from proxy.limits import Rule
from proxy.limits.engine import Counted
from proxy.limits.states import LimitStates
from proxy.limits.states import limits_of_key as _limits_of_key
from tenants.models import ApiKey


def counted(rules: Sequence[Rule], address: str) -> Counted | None:
    """Not from the loop of the calls: it is asked there. None where no gateway runs in this process."""
    from gateway_site.asgi import gateway  # the process's own, which imports what asks

    return gateway.counted(rules, address)


def limits_of_key(key: ApiKey, address: str = "") -> LimitStates:
    """The limits of a key with used, left and reset. `address`: of the caller, where there is one."""
    return _limits_of_key(key, counted, address)
