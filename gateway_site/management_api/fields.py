"""The types of fields, as the OpenAPI document has them. Strict: "1" is no number, and what is not known is refused."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from tenants import money

BIGGEST_ID = 2**63 - 1
# No control characters, and no blanks at the ends.
_NAME = r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$"
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class Body(BaseModel):
    """What is sent to us."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _moment(value: Any) -> datetime:
    if isinstance(value, str) and len(value) <= 40:
        try:
            at = datetime.fromisoformat(value)
            if at.tzinfo is not None and EARLIEST <= (at := at.astimezone(UTC)) < LATEST:
                return at
        except (ValueError, OverflowError):
            pass
    raise ValueError("Write a moment with its offset, e.g. 2026-12-31T18:00:00Z, of the years 2000 to 8999.")


def _money(value: str) -> str:
    money.to_nano(value)
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=_NAME)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=_NAME)]
Text = Annotated[str, StringConstraints(max_length=200)]
Prefix = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,16}$")]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Money = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,10}(\.[0-9]{1,9})?$"),
    AfterValidator(_money),
    Field(description="Units of the currency.", examples=["0.15"]),
]


def changes_of(new: type[BaseModel], *fixed: str) -> type[BaseModel]:
    """The body of a PATCH: the fields of the creation but those that stay, each of which may be left out."""
    fields: dict[str, Any] = {
        name: (field.rebuild_annotation(), Field(default=None, description=field.description))
        for name, field in new.model_fields.items()
        if name not in fixed
    }
    return create_model(new.__name__.removeprefix("New") + "Changes", __base__=Body, **fields)
