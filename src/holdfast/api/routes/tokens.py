"""Tokens of the TLS door."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Paging, With
from holdfast.spec.paging import Page
from holdfast.spec.token import TokenCreate, TokenCreated, TokenView

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


@router.get("")
async def list_tokens(services: With, _: Admin, paging: Paging) -> Page[TokenView]:
    return await services.tokens.list(paging)


@router.post("", status_code=201)
async def create_token(services: With, _: Admin, request: TokenCreate) -> TokenCreated:
    """The secret is in this answer and nowhere else."""
    token, secret = await services.tokens.create(request)
    return TokenCreated(token=token, secret=secret, fingerprint=services.fingerprint)


@router.delete("/{name}", status_code=204)
async def delete_token(services: With, _: Admin, name: str) -> None:
    await services.tokens.delete(name)
