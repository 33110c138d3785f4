"""Pools of volumes."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Operator, Paging, Viewer, With
from holdfast.spec.paging import Page
from holdfast.spec.pool import PoolCreate, PoolSummary, PoolView

router = APIRouter(prefix="/v1/pools", tags=["pools"])


@router.get("")
async def list_pools(services: With, _: Viewer, paging: Paging) -> Page[PoolSummary]:
    return await services.pools.list(paging)


@router.post("", status_code=201)
async def create_pool(services: With, _: Admin, request: PoolCreate) -> PoolView:
    return await services.pools.create(request)


@router.get("/{name}")
async def show_pool(services: With, _: Viewer, name: str) -> PoolView:
    return await services.pools.show(name)


@router.post("/{name}/refresh")
async def refresh_pool(services: With, _: Operator, name: str) -> PoolView:
    return await services.pools.refresh(name)


@router.delete("/{name}", status_code=204)
async def delete_pool(services: With, _: Admin, name: str) -> None:
    await services.pools.delete(name)
