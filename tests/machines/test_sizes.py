"""Processors and memory given to a guest that runs and taken back, seen from inside it."""

import time
from collections.abc import Callable
from typing import Any

from invariants import check_invariants
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.vm import VmState

NAME = "sizes"
_SETTLED = 30.0


def change(host: LiveHost, **wanted: object) -> dict[str, Any]:
    found: dict[str, Any] = host.call("PATCH", f"/v1/vms/{NAME}", wanted)
    return found


def cpus(host: LiveHost) -> int:
    return int(host.run_in(NAME, "grep -c ^processor /proc/cpuinfo"))


def memory(host: LiveHost) -> int:
    """MiB that the guest's kernel manages."""
    return int(host.run_in(NAME, "grep MemTotal /proc/meminfo").split()[1]) // 1024


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SETTLED
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processors_and_memory_come_and_go(host: LiveHost, small: SmallGuest) -> None:
    host.do("POST", "/v1/vms", small_vm(NAME, small.append, memory="512MiB", start=True))
    host.wait_agent(NAME)
    base = memory(host)
    grown = change(host, cpus=2, memory="768MiB")
    assert (grown["pending"], grown["waits"]) == ({}, {}), grown
    assert cpus(host) == 2
    until(lambda: memory(host) > base + 200)

    # Saved and started again: the same processors, the same pieces of memory.
    host.do("POST", f"/v1/vms/{NAME}/save")
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert cpus(host) == 2 and memory(host) > base + 200

    # More than there is room for waits for the next start, and says why.
    waits = change(host, cpus=64)
    assert waits["pending"] == {"cpus": 64} and "room for 8 CPUs" in waits["waits"]["cpus"]
    smaller = change(host, cpus=1)
    if smaller["pending"]:  # a guest may keep a processor: then it is said
        assert smaller["waits"]["cpus"] == "the guest has not let go of its CPUs"
    else:
        assert cpus(host) == 1

    # What was added is the memory of the next start; a machine that is off has any size.
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.wait_state(NAME, VmState.OFF)
    assert change(host, memory="640MiB")["memory"] == 640 << 20
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert abs(memory(host) - base - 128) < 32 and cpus(host) == 1
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.wait_state(NAME, VmState.OFF)
    check_invariants(host)
