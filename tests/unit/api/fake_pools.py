"""Pools that are kept in a dict."""

from datetime import UTC, datetime

from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.pool import PoolCreate, PoolHealth, PoolSummary, PoolView


class FakePools:
    def __init__(self) -> None:
        self.known: dict[str, PoolView] = {}

    async def create(self, request: PoolCreate) -> PoolView:
        self.known[request.name] = PoolView(
            name=request.name,
            kind=request.spec.kind,
            target=request.spec.target,
            created=datetime(2030, 1, 2, tzinfo=UTC),
            health=PoolHealth.AVAILABLE,
            capacity=1 << 30,
            used=0,
            free=1 << 30,
            provisioned=0,
            spec=request.spec,
            volumes=(),
        )
        return self.known[request.name]

    async def show(self, name: str) -> PoolView:
        return self.known[name]

    async def refresh(self, name: str) -> PoolView:
        return self.known[name]

    async def delete(self, name: str) -> None:
        del self.known[name]

    async def list(self, query: PageQuery) -> Page[PoolSummary]:
        return Page(items=tuple(self.known.values()), total=len(self.known), offset=0, limit=query.limit)
