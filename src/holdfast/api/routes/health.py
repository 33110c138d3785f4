"""Is the daemon there, which version is it, and what is its interface."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from holdfast.api.access import Viewer
from holdfast.spec.model import Frozen

router = APIRouter(prefix="/v1", tags=["health"])


class Health(Frozen):
    version: str


@router.get("/health")
async def health(_: Viewer) -> Health:
    return Health(version=version("holdfast"))


@router.get("/openapi.json", include_in_schema=False)
async def interface(request: Request, _: Viewer) -> dict[str, Any]:
    document: dict[str, Any] = request.app.openapi()
    return document
