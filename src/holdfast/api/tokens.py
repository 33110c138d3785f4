"""Tokens of the TLS door: 256 random bits, of which only the SHA-256 is stored.

A plain hash suffices: there is nothing to guess in 256 random bits. The look-up goes by the hash,
so no comparison leaks how near a guess was.
"""

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import TokenRow
from holdfast.spec.access import Principal, Role
from holdfast.spec.errors import Conflict, NotFound, Unauthenticated
from holdfast.spec.paging import BadSort, Page, PageQuery
from holdfast.spec.token import TokenCreate, TokenView

_SORTS = {"name", "role", "created", "expires", "last_used"}
_USE_KEPT_EVERY = timedelta(minutes=1)


class TokenNotFound(NotFound):
    id = "token-not-found"


class TokenNameTaken(Conflict):
    id = "token-name-taken"


class BadToken(Unauthenticated):
    id = "bad-token"


class TokenExpired(Unauthenticated):
    id = "token-expired"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _maybe(time: datetime | None) -> datetime | None:
    return aware(time) if time else None


def _view(row: TokenRow) -> TokenView:
    return TokenView(
        name=row.name,
        role=Role(row.role),
        created=aware(row.created),
        expires=_maybe(row.expires),
        last_used=_maybe(row.last_used),
    )


class TokenStore:
    """Owner of the token records."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def create(self, request: TokenCreate) -> tuple[TokenView, str]:
        """A new token and its secret, which cannot be had again."""
        secret = "hf_" + secrets.token_urlsafe(32)

        def store(session: Session) -> TokenView:
            if session.get(TokenRow, request.name):
                raise TokenNameTaken(
                    f"there is already a token named {request.name!r}",
                    value=request.name,
                    cure="Choose another name, or delete that token first.",
                )
            made = now()
            row = TokenRow(
                name=request.name,
                digest=_digest(secret),
                role=request.role,
                created=made,
                expires=made + timedelta(days=request.days) if request.days else None,
            )
            session.add(row)
            return _view(row)

        return await self._catalog.write(store), secret

    async def delete(self, name: str) -> None:
        """Revoke a token; it is refused from the next request on."""

        def store(session: Session) -> None:
            row = session.get(TokenRow, name)
            if row is None:
                raise TokenNotFound(
                    f"there is no token {name[:64]!r}", value=name[:64], cure="See `holdfast token list`."
                )
            session.delete(row)

        await self._catalog.write(store)

    async def list(self, query: PageQuery) -> Page[TokenView]:
        key = query.sort.lstrip("-")
        if key not in _SORTS:
            raise BadSort(
                f"tokens cannot be sorted by {key!r}",
                value=key,
                cure=f"Use one of {', '.join(sorted(_SORTS))}.",
            )

        def load(session: Session) -> Page[TokenView]:
            statement = select(TokenRow)
            if query.filter:
                statement = statement.where(TokenRow.name.icontains(query.filter, autoescape=True))
            total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
            column = getattr(TokenRow, key)
            ordered = statement.order_by(column.desc() if query.sort.startswith("-") else column)
            rows = session.scalars(ordered.offset(query.offset).limit(query.limit))
            items = tuple(_view(row) for row in rows)
            return Page(items=items, total=total, offset=query.offset, limit=query.limit)

        return await self._catalog.read(load)

    async def authenticate(self, secret: str) -> Principal:
        """Whom a secret stands for.

        Raises:
            BadToken: no such token (any more).
            TokenExpired: its time is over.
        """
        digest = _digest(secret)

        def load(session: Session) -> TokenView | None:
            row = session.scalar(select(TokenRow).where(TokenRow.digest == digest))
            return _view(row) if row else None

        token = await self._catalog.read(load)
        if token is None:
            raise BadToken("the token is not known", cure="Ask an admin for a token of this host.")
        time = aware(now())
        if token.expires and token.expires <= time:
            raise TokenExpired(
                f"the token {token.name!r} expired at {token.expires:%Y-%m-%d %H:%M} UTC",
                value=token.name,
                cure="Ask an admin for a new one.",
            )
        if token.last_used is None or time - token.last_used > _USE_KEPT_EVERY:
            await self._catalog.write(lambda session: _used(session, digest))
        return Principal(name=f"token {token.name}", role=token.role)


def _used(session: Session, digest: str) -> None:
    row = session.scalar(select(TokenRow).where(TokenRow.digest == digest))
    if row:
        row.last_used = now()
