from usage.models.prices import Price
from usage.models.records import Outcome, UsageRecord
from usage.models.rollups import DailyUsage, Retention, UsageBucket

__all__ = ["DailyUsage", "Outcome", "Price", "Retention", "UsageBucket", "UsageRecord"]
