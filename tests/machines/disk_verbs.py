"""What tests ask of a VM's disks, over a live daemon."""

from typing import Any

import pytest
from live_host import LiveHost, OperationEndedBadly

from holdfast.spec.errors import HoldfastError


def disks(host: LiveHost, name: str) -> dict[str, dict[str, Any]]:
    return {disk["id"]: disk for disk in host.call("GET", f"/v1/vms/{name}/disks")}


def add(host: LiveHost, name: str, **body: Any) -> dict[str, Any]:
    result = host.do("POST", f"/v1/vms/{name}/disks", body).result
    assert result
    return result


def remove(host: LiveHost, name: str, disk: str, **query: Any) -> dict[str, Any]:
    result = host.do("DELETE", f"/v1/vms/{name}/disks/{disk}", **query).result
    assert result
    return result


def refused(host: LiveHost, error: str, method: str, path: str, body: Any = None, **query: Any) -> str:
    """By its id, at once or by the operation; returns what was said."""
    try:
        host.do(method, f"/v1/vms/{path}", body, **query)
    except HoldfastError as refusal:
        told = refusal.as_dict()
    except OperationEndedBadly as ended:
        told = ended.args[0].error
    else:
        pytest.fail(f"{error} was not raised")
    assert told["id"] == error, told
    return str(told["message"])
