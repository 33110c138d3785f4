"""Metrics for Prometheus, at the address that it looks at by default."""

from fastapi import APIRouter, Response

from holdfast.api.access import Counted, Viewer, With
from holdfast.api.metrics import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(services: With, counted: Counted, _: Viewer) -> Response:
    return Response(await counted.text(services), media_type=CONTENT_TYPE)
