"""What the limits of this process have counted, for pages and the API that are served by it."""

from collections.abc import Sequence

from proxy.limits import Rule
from proxy.limits.engine import Counted
from proxy.limits.states import LimitStates
from proxy.limits.states import limits_of_key as _limits_of_key
from proxy.runtime import Runtime
from tenants.models import ApiKey


def runtime() -> Runtime:
    """That of this process, which may not have been started."""
    from gateway_site.asgi import gateway  # which imports what asks

    return gateway


def counted(rules: Sequence[Rule], address: str) -> Counted | None:
    """Not from the loop of the calls: it is asked there. None where no gateway runs in this process."""
    return runtime().counted(rules, address)


def limits_of_key(key: ApiKey, address: str = "") -> LimitStates:
    """The limits of a key with used, left and reset. `address`: of the caller, where there is one."""
    return _limits_of_key(key, counted, address)
