"""The host: what it is and whether it can."""

from fastapi import APIRouter

from holdfast.api.access import Viewer, With
from holdfast.spec.host import CheckLine, HostInventory

router = APIRouter(prefix="/v1/host", tags=["host"])


@router.get("/check")
async def check_host(services: With, _: Viewer) -> list[CheckLine]:
    return list(await services.host.check())


@router.get("")
async def show_host(services: With, _: Viewer) -> HostInventory:
    return await services.host.inventory()
