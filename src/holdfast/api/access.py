"""What every route asks for: the least role of its caller, the services, the page of a list.

All are coroutines: FastAPI would run plain functions in threads.
"""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import HTTPConnection

from holdfast.api.doors import RoleTooLow
from holdfast.api.metrics import Metrics
from holdfast.api.services import Services
from holdfast.spec.access import Principal, Role
from holdfast.spec.paging import MAX_PAGE, PageQuery


class Needs:
    """A dependency: the caller, refused where the role is too low."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, connection: HTTPConnection) -> Principal:
        principal: Principal = connection.state.principal
        if not principal.role.includes(self.role):
            raise RoleTooLow(
                f"{principal.name} has the role {principal.role}; this needs {self.role}",
                value=principal.role,
                cure=f"Ask an admin for a token with the role {self.role}.",
            )
        return principal


async def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


async def _metrics(connection: HTTPConnection) -> Metrics:
    metrics: Metrics = connection.app.state.metrics
    return metrics


async def _paging(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    sort: Annotated[str, Query(max_length=32, description="A field; `-` before it: descending.")] = "name",
    filter: Annotated[str | None, Query(max_length=128, description="Part of the name, or * and ?.")] = None,
) -> PageQuery:
    return PageQuery(limit=limit, offset=offset, sort=sort, filter=filter)


Viewer = Annotated[Principal, Depends(Needs(Role.VIEWER))]
Operator = Annotated[Principal, Depends(Needs(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(Needs(Role.ADMIN))]
With = Annotated[Services, Depends(_services)]
Counted = Annotated[Metrics, Depends(_metrics)]
Paging = Annotated[PageQuery, Depends(_paging)]
