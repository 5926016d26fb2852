from usage.models.prices import Price
from usage.models.records import Outcome, UsageRecord
from usage.models.reratings import Rerating
from usage.models.rollups import DailyTotal, DailyUsage, EndUserUsage, Retention, UsageBucket
from usage.models.texts import StoredText

__all__ = [
    "DailyTotal",
    "DailyUsage",
    "EndUserUsage",
    "Outcome",
    "Price",
    "Rerating",
    "Retention",
    "StoredText",
    "UsageBucket",
    "UsageRecord",
]
