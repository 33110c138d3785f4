"""Switches."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Paging, Viewer, With
from holdfast.spec.paging import Page
from holdfast.spec.switch import SwitchSpec

router = APIRouter(prefix="/v1/switches", tags=["switches"])


@router.get("")
async def list_switches(services: With, _: Viewer, paging: Paging) -> Page[SwitchSpec]:
    return await services.switches.list(paging)


@router.post("", status_code=201)
async def create_switch(services: With, _: Admin, spec: SwitchSpec) -> SwitchSpec:
    return await services.switches.create(spec)


@router.get("/{name}")
async def show_switch(services: With, _: Viewer, name: str) -> SwitchSpec:
    return await services.switches.show(name)


@router.delete("/{name}", status_code=204)
async def delete_switch(services: With, _: Admin, name: str) -> None:
    await services.switches.delete(name)
