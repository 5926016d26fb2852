"""What the newest requests tell, found by an index: a bounded number of rows, however many there are."""

from statistics import median

from usage import request_lists
from usage.models import UsageRecord
from usage.reports import Scope
from usage.request_lists import FAILURES, RequestFilters

# How many of the newest calls the first token's median is taken of.
CALLS_LOOKED_AT = 200
SOME_FAILURES = 5


def first_token_us(scope: Scope) -> int | None:
    """The median of how long the newest calls waited for their first token, in microseconds; None without any."""
    newest = UsageRecord.objects.filter(scope.rows).order_by("-started_at", "-id")
    found = [us for us in newest.values_list("first_token_us", flat=True)[:CALLS_LOOKED_AT] if us]
    return round(median(found)) if found else None


def failures(scope: Scope) -> list[UsageRecord]:
    return request_lists.page(scope, RequestFilters(outcome=FAILURES), size=SOME_FAILURES).records
