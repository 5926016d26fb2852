"""Hours of a zone, as its clocks show them. Days of 23 and 25 hours, and steps of half an hour, exist."""

from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from usage.rollups import BUCKET, day_begins


def hour_of(at: datetime, zone: ZoneInfo) -> datetime:
    """The beginning of the hour that the clocks show at a moment, with their offset: it tells two of one name apart.

    Where the clocks are put into the middle of an hour, the part of it before and the part after are two hours.
    """
    local = at.astimezone(zone)
    offset = local.utcoffset()
    assert offset is not None
    return local.replace(minute=0, second=0, microsecond=0, fold=0, tzinfo=timezone(offset))


def hours_of(first: date, last: date, zone: ZoneInfo) -> list[datetime]:
    """Of the days from the first to the last, in the order in which they happen."""
    at, end = day_begins(first, zone), day_begins(last + timedelta(days=1), zone)
    found: dict[datetime, None] = {}
    while at < end:
        found[hour_of(at, zone)] = None
        at += BUCKET
    return list(found)
