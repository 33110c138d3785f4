"""Images, and the uploads that become images."""

from fastapi import APIRouter, Request

from holdfast.api.access import Admin, Paging, Viewer, With
from holdfast.spec.image import Image
from holdfast.spec.image_requests import ImageBuild, ImageImport, ImagePull, Upload
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.get("")
async def list_images(services: With, _: Viewer, paging: Paging) -> Page[Image]:
    return await services.images.list(paging)


@router.post("/uploads", status_code=201)
async def upload(services: With, _: Admin, request: Request) -> Upload:
    """The body is the file itself."""
    return await services.uploads.receive(request.stream())


@router.post("/build", status_code=202)
async def build_image(services: With, caller: Admin, request: ImageBuild) -> Operation:
    return await services.image_work.build(request, caller.name)


@router.post("/pull", status_code=202)
async def pull_image(services: With, caller: Admin, request: ImagePull) -> Operation:
    return await services.image_work.pull(request, caller.name)


@router.post("/import", status_code=202)
async def import_image(services: With, caller: Admin, request: ImageImport) -> Operation:
    path = services.uploads.take(request.upload)
    return await services.image_work.import_file(
        path, request.name, request.kind, request.source, caller.name
    )


@router.get("/{name}")
async def show_image(services: With, _: Viewer, name: str) -> Image:
    return await services.images.get(name)


@router.delete("/{name}", status_code=204)
async def delete_image(services: With, _: Admin, name: str) -> None:
    await services.images.delete(name)
