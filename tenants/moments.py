"""Moments that every database, and every time zone, can say."""

from datetime import UTC, date, datetime

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator

FIRST_YEAR, LAST_YEAR = 1900, 8999
# Of a field for the last day of something: the midnight after it is a moment everywhere.
LAST_DAY = MaxValueValidator(date(LAST_YEAR, 12, 31))


def validate_moment(value: datetime) -> None:
    try:
        year = value.astimezone(UTC).year
    except OverflowError:
        year = 0
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ValidationError(f"Write a moment of the years {FIRST_YEAR} to {LAST_YEAR}.")
