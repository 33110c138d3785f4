"""Real guests on real switches, in a network namespace of the test's own."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_host import LiveHost, OperationEndedBadly, live_host
from namespaces import Peers, ip
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.replication.guest_addresses import AddressSet, Means, set_addresses
from holdfast.spec.errors import HoldfastError
from holdfast.spec.failover import parse_failover_address
from holdfast.spec.vm import GuestOs, Nic
from holdfast.spec.vm_requests import ExecRequest, ExecResult

_SETTLED = 30.0


@pytest.fixture
def lan(peer: Peers, tmp_path: Path, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon in the test's namespace."""
    with live_host(tmp_path) as running:
        yield with_small_images(running, small)


def start(host: LiveHost, small: SmallGuest, *names: str, switch: str) -> None:
    for name in names:
        host.do("POST", "/v1/vms", small_vm(name, small.append, start=True, nics=[{"switch": switch}]))
    for name in names:
        host.wait_agent(name)


def address_of(host: LiveHost, name: str) -> str:
    deadline = time.monotonic() + _SETTLED
    while True:
        found = [each for each in host.vm(name).addresses if ":" not in each]
        if found:
            return found[0]
        assert time.monotonic() < deadline, host.run_in(name, "ip addr")
        time.sleep(0.2)


def said(host: LiveHost, name: str, script: str, expected: str) -> None:
    """A guest that has only just started may need a moment until its network answers."""
    deadline = time.monotonic() + _SETTLED
    while True:
        body = {"argv": ["/bin/sh", "-c", f"{script} 2>&1"], "timeout_seconds": 20}
        heard = host.call("POST", f"/v1/vms/{name}/exec", body)["stdout"]
        if expected in heard:
            return
        assert time.monotonic() < deadline, heard
        time.sleep(0.2)


def given_by_agent(host: LiveHost, name: str, text: str) -> AddressSet:
    """As a failover sets addresses in a guest without a cloud-init seed."""

    async def execute(request: ExecRequest) -> ExecResult:
        body = request.model_dump(mode="json")
        return ExecResult.model_validate(host.call("POST", f"/v1/vms/{name}/exec", body))

    (shown,) = host.call("GET", f"/v1/vms/{name}/nics")
    nic = Nic(id=shown["id"], mac=shown["mac"])
    wanted = [(nic, parse_failover_address(text))]
    (found,) = asyncio.run(set_addresses(execute, GuestOs.LINUX, wanted))
    return found


def reaches(host: LiveHost, name: str, target: str) -> bool:
    try:
        host.run_in(name, f"ping -c 2 -W 3 {target}")
    except AssertionError:
        return False
    return True


def host_reaches(address: str) -> bool:
    done = subprocess.run(["busybox", "ping", "-c1", "-W3", address], capture_output=True, check=False)
    return done.returncode == 0


def test_an_internal_switch_gives_addresses_names_and_the_way_out(
    lan: LiveHost, peer: Peers, small: SmallGuest
) -> None:
    outside = peer.add("up0")
    ip("addr", "add", "198.51.100.1/24", "dev", "up0")
    ip("-n", outside, "addr", "add", "198.51.100.2/24", "dev", "eth0")
    server = subprocess.Popen(
        ["ip", "netns", "exec", outside, "busybox", "nc", "-ll", "-p", "8000", "-e", "echo", "from outside"]
    )
    try:
        lan.call("POST", "/v1/switches", {"name": "lab", "type": "internal"})
        start(lan, small, "web one", "db", switch="lab")
        web, db = address_of(lan, "web one"), address_of(lan, "db")
        assert web != db
        # Names of VMs, from DNS of the switch; the answer is the other guest's address.
        said(lan, "web one", "nslookup db.lab.holdfast.internal", db)
        said(lan, "db", "nslookup web-one.lab.holdfast.internal", web)
        assert reaches(lan, "web one", db)
        assert host_reaches(web)
        # NAT: the outside has no route back to the switch.
        said(lan, "web one", "nc -w 5 198.51.100.2 8000", "from outside")
        # The daemon goes and comes back: nobody on the switch notices.
        lan.kill()
        assert host_reaches(db)
        lan.start()
        lan.wait_agent("db")
        said(lan, "db", "nc -w 5 198.51.100.2 8000", "from outside")
        with pytest.raises(HoldfastError) as refusal:
            lan.call("DELETE", "/v1/switches/lab")
        assert refusal.value.as_dict()["id"] == "switch-in-use"
        for name in ("web one", "db"):
            lan.do("DELETE", f"/v1/vms/{name}", force="true")
        lan.call("DELETE", "/v1/switches/lab")
        assert "hf" not in ip("-br", "link")
        assert lan.processes.find() == []
    finally:
        server.kill()
        server.wait()


def test_a_private_switch_keeps_vms_among_themselves(lan: LiveHost, peer: Peers, small: SmallGuest) -> None:
    lan.call("POST", "/v1/switches", {"name": "closed", "type": "private"})
    start(lan, small, "a", "b", switch="closed")
    lan.run_in("a", "ip addr add 192.0.2.1/24 dev eth0")
    given = given_by_agent(lan, "b", "nic0=192.0.2.2/24,2001:db8::2/64,gateway=192.0.2.254,dns=192.0.2.53")
    assert (given.done, given.means) == (True, Means.IP), given
    assert "default via 192.0.2.254" in lan.run_in("b", "ip route")
    assert "2001:db8::2/64" in lan.run_in("b", "ip addr show dev eth0")
    assert "192.0.2.53" in lan.run_in("b", "cat /etc/resolv.conf")
    assert reaches(lan, "a", "192.0.2.2")
    bridge = next(line.split()[0] for line in ip("-br", "link", "show", "type", "bridge").splitlines())
    ip("route", "add", "192.0.2.0/24", "dev", bridge)
    assert not host_reaches("192.0.2.1")


def test_an_external_switch_is_the_physical_network(lan: LiveHost, peer: Peers, small: SmallGuest) -> None:
    outside = peer.add("phys0")
    ip("-n", outside, "addr", "add", "203.0.113.1/24", "dev", "eth0")
    lan.call("POST", "/v1/switches", {"name": "office", "type": "external", "interface": "phys0"})
    start(lan, small, "pc", switch="office")
    lan.run_in("pc", "ip addr add 203.0.113.9/24 dev eth0")
    assert reaches(lan, "pc", "203.0.113.1")
    assert peer.run(outside, "busybox", "ping", "-c1", "-W3", "203.0.113.9").returncode == 0


def test_a_vm_on_a_switch_that_does_not_exist_is_refused(lan: LiveHost, small: SmallGuest) -> None:
    with pytest.raises((HoldfastError, OperationEndedBadly)) as refusal:
        start(lan, small, "lost", switch="nowhere")
    assert isinstance(refusal.value, HoldfastError)
    assert refusal.value.as_dict()["id"] == "switch-not-found"
    assert lan.call("GET", "/v1/vms")["items"] == []
