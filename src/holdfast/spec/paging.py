"""Lists as they cross the wire: always a page, sorted and filtered in the store."""

from typing import Generic, TypeVar

from pydantic import Field

from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen

T = TypeVar("T")

MAX_PAGE = 1000


class BadSort(InvalidInput):
    """The list cannot be sorted by this field; the cure names those it can."""

    id = "bad-sort"


class PageQuery(Frozen):
    """Which part of a list, in which order.

    `sort` is a field's name, with a leading `-` for descending. `filter` is matched as a
    case-insensitive part of the name; `*` and `?` make it a whole-name pattern.
    """

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    offset: int = Field(default=0, ge=0)
    sort: str = "name"
    filter: str | None = None


class Page(Frozen, Generic[T]):
    items: tuple[T, ...]
    total: int
    """How many there are in all that fit the filter."""
    offset: int
    limit: int
