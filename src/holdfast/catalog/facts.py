"""Facts: small findings kept under a key that says what they hold for."""

from typing import Any

from sqlalchemy.orm import Session

from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import FactRow


class Facts:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def get(self, key: str) -> dict[str, Any] | None:
        def query(session: Session) -> dict[str, Any] | None:
            row = session.get(FactRow, key)
            return dict(row.value) if row else None

        return await self._catalog.read(query)

    async def put(self, key: str, value: dict[str, Any]) -> None:
        await self._catalog.write(lambda session: session.merge(FactRow(key=key, value=value)))
