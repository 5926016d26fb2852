from usage.models.prices import Price
from usage.models.records import Outcome, UsageRecord
from usage.models.rollups import DailyUsage, EndUserUsage, Retention, UsageBucket

__all__ = ["DailyUsage", "EndUserUsage", "Outcome", "Price", "Retention", "UsageBucket", "UsageRecord"]
