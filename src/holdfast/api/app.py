"""The application: every route over the services that daemon.py (or a test) gives."""

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.routing import APIRoute

from holdfast.api import errors
from holdfast.api.gate import Gate
from holdfast.api.metrics import Metrics
from holdfast.api.routes import (
    attestation,
    certificates,
    checkpoints,
    disks,
    events,
    exports,
    failover,
    firmware_state,
    health,
    host,
    images,
    imports,
    metrics,
    nics,
    operations,
    pools,
    replica,
    replica_tests,
    seeds,
    streams,
    switches,
    tokens,
    trust,
    usb,
    vms,
    vsphere,
)
from holdfast.api.services import Services

ROUTERS = (
    vms,
    nics,
    usb,
    disks,
    trust,
    firmware_state,
    certificates,
    checkpoints,
    exports,
    streams,
    images,
    pools,
    imports,
    vsphere,
    switches,
    replica,
    failover,
    replica_tests,
    seeds,
    operations,
    events,
    host,
    attestation,
    tokens,
    health,
    metrics,
)


def _operation_id(route: APIRoute) -> str:
    return route.name


def build_app(services: Services) -> FastAPI:
    app = FastAPI(
        title="Holdfast",
        version=version("holdfast"),
        summary="The host daemon",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.services = services
    app.state.metrics = Metrics()
    for module in ROUTERS:
        app.include_router(module.router)
    errors.install(app)
    app.add_middleware(Gate, tokens=services.tokens, metrics=app.state.metrics)
    return app
