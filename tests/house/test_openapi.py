"""The checked-in interface is the one that the code has, and every route names its least role."""

from fastapi.dependencies.models import Dependant

from holdfast.api import openapi
from holdfast.api.access import Needs
from holdfast.api.app import ROUTERS


def test_the_checked_in_document_is_fresh() -> None:
    assert openapi.PATH.read_text() == openapi.text(), "run python -m holdfast.api.openapi --write"


def roles(dependant: Dependant) -> list[Needs]:
    found = [each.call for each in dependant.dependencies if isinstance(each.call, Needs)]
    return found + [role for each in dependant.dependencies for role in roles(each)]


def test_every_route_declares_its_least_role() -> None:
    routes = [route for module in ROUTERS for route in module.router.routes]
    assert len(routes) > 35
    assert [route.path for route in routes if len(roles(route.dependant)) != 1] == []
