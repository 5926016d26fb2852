"""How much: reserve at admission, settle at the end, whatever the end."""

from proxy.limits.memory import MemoryLimits
from proxy.limits.rules import Amounts, Rule

__all__ = ["Amounts", "MemoryLimits", "Rule"]
