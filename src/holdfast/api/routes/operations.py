"""Operations: long work under way or ended."""

from fastapi import APIRouter

from holdfast.api.access import Operator, Paging, Viewer, With
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page

router = APIRouter(prefix="/v1/operations", tags=["operations"])


@router.get("")
async def list_operations(
    services: With, _: Viewer, paging: Paging, running: bool = False
) -> Page[Operation]:
    return await services.operations.list(paging, running)


@router.get("/{operation_id}")
async def show_operation(services: With, _: Viewer, operation_id: str) -> Operation:
    return await services.operations.get(operation_id)


@router.post("/{operation_id}/cancel", status_code=202)
async def cancel_operation(services: With, _: Operator, operation_id: str) -> Operation:
    return await services.operations.cancel(operation_id)
