"""How much: reserve at admission, settle at the end, whatever the end."""

from proxy.limits.engine import Limits
from proxy.limits.memory import MemoryLimits
from proxy.limits.redis import RedisLimits
from proxy.limits.rules import Amounts, Reservation, Rule

__all__ = ["Amounts", "Limits", "MemoryLimits", "RedisLimits", "Reservation", "Rule"]
