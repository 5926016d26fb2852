"""Lists by keyset: what is inserted or deleted meanwhile neither repeats nor hides a row."""

from typing import Annotated, Any

from django.db.models import Model, QuerySet
from ninja import Query
from pydantic import BaseModel, Field, create_model

from gateway_site.management_api.fields import BIGGEST_ID

Size = Annotated[int, Query(100, alias="limit", ge=1, le=1000, description="Rows of a page.")]
After = Annotated[int, Query(0, ge=0, le=BIGGEST_ID, description="The `next` of the page before.")]


def page_of(shown: type[BaseModel]) -> type[BaseModel]:
    """The answer to a list of these."""
    following = Annotated[int | None, Field(description="Give it as `after` to get the next page; null on the last.")]
    return create_model(f"{shown.__name__}Page", items=(list[shown], ...), next=(following, ...))  # type: ignore[valid-type]


def page(rows: QuerySet[Any], size: int, after: int) -> tuple[list[Model], int | None]:
    """In the order of their ids: the rows of a page, and where the next begins."""
    found = list(rows.filter(pk__gt=after).order_by("pk")[: size + 1])
    return found[:size], (found[size - 1].pk if len(found) > size else None)
