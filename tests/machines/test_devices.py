"""Devices put into and taken out of a guest that runs, seen from inside it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants
from live_host import LiveHost, live_host
from namespaces import Peers, ip
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState

_SETTLED = 30.0


@pytest.fixture
def lan(peer: Peers, tmp_path: Path, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon in the test's namespace, with two switches and a guest that runs."""
    with live_host(tmp_path) as host:
        with_small_images(host, small)
        for name in ("lan", "dmz"):
            host.call("POST", "/v1/switches", {"name": name, "type": "private"})
        host.do("POST", "/v1/vms", small_vm("pc", small.append, start=True, memory="512MiB"))
        host.wait_agent("pc")
        yield host


def refused(host: LiveHost, method: str, path: str, body: Any = None, **query: Any) -> str:
    with pytest.raises(HoldfastError) as refusal:
        host.call(method, path, body, **query)
    return str(refusal.value.as_dict()["id"])


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SETTLED
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nics(host: LiveHost) -> dict[str, dict[str, Any]]:
    return {nic["id"]: nic for nic in host.call("GET", "/v1/vms/pc/nics")}


def stations(host: LiveHost) -> set[str]:
    return set(host.run_in("pc", "cat /sys/class/net/eth*/address 2>/dev/null || true").split())


def taps() -> list[int]:
    """How many ports there are on each switch."""
    bridges = [line.split()[0] for line in ip("-br", "link", "show", "type", "bridge").splitlines()]
    return [ip("-br", "link", "show", "master", each).count("hft") for each in bridges]


def test_nics_come_and_go_while_the_guest_runs(lan: LiveHost, small: SmallGuest) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: lan.call("POST", "/v1/vms/pc/nics", {"switch": "lan"}), range(8)))
    assert all(nic["plugged"] and nic["guest_sees"] and nic["after_next_start"] for nic in added), added
    assert sorted(nic["id"] for nic in added) == [f"nic{number}" for number in range(8)]
    assert min(nic["free_ports"] for nic in added) == 0
    macs = {nic["id"]: nic["mac"] for nic in added}
    assert stations(lan) == set(macs.values())
    assert sum(taps()) == 8
    assert refused(lan, "POST", "/v1/vms/pc/nics", {"switch": "lan"}) == "ports-taken"
    assert refused(lan, "POST", "/v1/vms/pc/nics", {"switch": "nowhere"}) == "switch-not-found"
    assert lan.vm("pc").pending == {}

    # Saved and started again: the same cards on the same ports.
    places = lan.run_in("pc", "readlink -f /sys/class/net/eth*/device | sort")
    lan.do("POST", "/v1/vms/pc/save")
    assert sum(taps()) == 0
    lan.do("POST", "/v1/vms/pc/start")
    assert lan.run_in("pc", "readlink -f /sys/class/net/eth*/device | sort") == places
    assert sum(taps()) == 8

    _move_and_find_again(lan, macs)
    _remove(lan, macs)

    lan.do("POST", "/v1/vms/pc/stop")
    assert sum(taps()) == 0
    lan.call("DELETE", "/v1/vms/pc/nics/nic5")
    assert refused(lan, "POST", "/v1/vms/pc/nics", {"mac": macs["nic6"]}) == "mac-taken"
    lan.call("POST", "/v1/vms/pc/nics", {"mac": macs["nic5"]})
    lan.do("POST", "/v1/vms/pc/start")
    lan.wait_agent("pc")
    assert stations(lan) == {nic["mac"] for nic in nics(lan).values()}
    assert {nic["switch"] for nic in nics(lan).values()} == {"lan", "dmz", None}
    lan.call("POST", "/v1/vms/pc/kill")
    lan.wait_state("pc", VmState.OFF)
    assert sum(taps()) == 0
    check_invariants(lan)


def _move_and_find_again(lan: LiveHost, macs: dict[str, str]) -> None:
    """To another switch, and back into a daemon that was killed."""
    moved = lan.call("PATCH", "/v1/vms/pc/nics/nic0", {"switch": "dmz"})
    assert (moved["switch"], moved["note"]) == ("dmz", "")
    assert sorted(taps()) == [1, 7]
    waits = lan.call("PATCH", "/v1/vms/pc/nics/nic1", {"switch": ""})
    assert "next start" in waits["note"] and waits["switch"] == "lan"
    assert list(lan.vm("pc").pending) == ["nics"]
    lan.call("PATCH", "/v1/vms/pc/nics/nic1", {"switch": "lan"})
    lan.kill()
    lan.start()
    lan.wait_agent("pc")
    assert {each: nic["mac"] for each, nic in nics(lan).items()} == macs


def _remove(lan: LiveHost, macs: dict[str, str]) -> None:
    gone = lan.call("DELETE", "/v1/vms/pc/nics/nic3")
    assert (gone["plugged"], gone["guest_sees"], gone["after_next_start"]) == (False, False, False)
    assert macs["nic3"] not in stations(lan) and sum(taps()) == 7
    assert refused(lan, "DELETE", "/v1/vms/pc/nics/nic3") == "nic-not-found"

    # A guest that hears nothing keeps its card; what is forced frees the host's side at once.
    lan.call("POST", "/v1/vms/pc/pause")
    assert refused(lan, "DELETE", "/v1/vms/pc/nics/nic4") == "unplug-ignored"
    assert (nics(lan)["nic4"]["plugged"], nics(lan)["nic4"]["after_next_start"]) == (True, False)
    cut = lan.call("DELETE", "/v1/vms/pc/nics/nic4", force="true")
    assert cut["plugged"] and "cut off" in cut["note"] and sum(taps()) == 6
    lan.call("POST", "/v1/vms/pc/resume")
    until(lambda: "nic4" not in nics(lan))
    assert ip("-br", "link").count("hft") == 6
    assert len(stations(lan)) == 6
