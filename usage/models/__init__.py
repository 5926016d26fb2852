from usage.models.prices import Price
from usage.models.records import Outcome, UsageRecord
from usage.models.reratings import Rerating
from usage.models.rollups import DailyTotal, DailyUsage, EndUserUsage, Retention, UsageBucket

__all__ = [
    "DailyTotal",
    "DailyUsage",
    "EndUserUsage",
    "Outcome",
    "Price",
    "Rerating",
    "Retention",
    "UsageBucket",
    "UsageRecord",
]
