"""What holds whenever nothing is under way: records and reality agree, and nothing is left over."""

import time
from pathlib import Path

from live_host import LiveHost

from holdfast.spec.vm import VmState

_WITH_MACHINE = {VmState.RUNNING, VmState.PAUSED, VmState.STOPPING}


def wait_quiet(host: LiveHost, limit: float = 120.0) -> None:
    """Until no operation is under way."""
    deadline = time.monotonic() + limit
    while left := host.call("GET", "/v1/operations", running="true")["items"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def wait_noticed(host: LiveHost, limit: float = 30.0) -> None:
    """Until the daemon's word is true: a QEMU that was killed a moment ago may count as running."""
    deadline = time.monotonic() + limit
    while (said := _said_to_run(host)) != (there := sorted(marked.owner for marked in host.qemus())):
        assert time.monotonic() < deadline, (said, there)
        time.sleep(0.05)


def _said_to_run(host: LiveHost) -> list[str]:
    items = host.call("GET", "/v1/vms", limit=1000)["items"]
    return sorted(f"vm:{each['id']}" for each in items if VmState(each["state"]) in _WITH_MACHINE)


def check_invariants(host: LiveHost, failed: frozenset[str] = frozenset()) -> list[dict[str, object]]:
    """Returns the VMs. `failed`: names of those that may be in the state failed."""
    wait_quiet(host)
    items: list[dict[str, object]] = host.call("GET", "/v1/vms", limit=1000)["items"]
    alive = {f"vm:{each['id']}" for each in items if VmState(str(each["state"])) in _WITH_MACHINE}
    fleeting = ("starting", "saving", *(() if failed else ("failed",)))
    assert not [each for each in items if each["state"] in fleeting and each["name"] not in failed], items
    assert sorted(marked.owner for marked in host.qemus()) == sorted(alive)
    assert {marked.owner for marked in host.processes.find() if marked.owner.startswith("vm:")} <= alive
    others = [each for each in host.processes.find() if not each.owner.startswith(("vm:", "switch:"))]
    assert others == [], others
    assert {path.name for path in host.state.vms.iterdir()} == {each["name"] for each in items}
    sockets = {path.name for path in (host.state.runtime / "vm").iterdir()}
    assert sockets == {owner.removeprefix("vm:")[:8] for owner in alive}
    assert not [path for path in host.state.scratch.iterdir() if path.name != "uploads"]
    for each in items:
        _check_vm(host.state.vm(str(each["name"])), each)
    return items


def _check_vm(folder: Path, item: dict[str, object]) -> None:
    assert item["operation"] is None, item
    assert (folder / "memory").exists() == (item["state"] == "saved"), item
    assert not (folder / "memory.partial").exists() and not (folder / "memory.used").exists()
    assert not (folder / "firmware/tpm.kept").exists() or item["state"] in ("saved", "off")
