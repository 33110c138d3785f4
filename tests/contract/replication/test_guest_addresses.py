"""The script that sets a guest's addresses, run by a real shell on a real interface in a network namespace.

Programs that keep networks are not in it: those are played by programs that write down what they are told.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.replication.guest_addresses import AddressSet, Means, set_addresses
from holdfast.spec.errors import HoldfastError
from holdfast.spec.failover import FailoverAddress, parse_failover_address
from holdfast.spec.vm import GuestOs, Nic
from holdfast.spec.vm_requests import ExecRequest, ExecResult

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")

NIC = Nic(id="nic0", mac="52:54:00:00:00:99")
BOTH = parse_failover_address(
    "nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,gateway=2001:db8::1,dns=192.0.2.53"
)
NAMESPACE = f"hf-addresses-{os.getpid()}"


class Guest:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "programs"
        self.programs.mkdir()
        for folder in ("etc/netplan", "etc/systemd/network"):
            (root / folder).mkdir(parents=True)

    def has(self, name: str, lines: str = "") -> None:
        program = self.programs / name
        told = self.root / "told"
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {told}\n{lines}\n')
        program.chmod(0o755)

    def told(self) -> str:
        return (self.root / "told").read_text()

    def run(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOLDFAST_ROOT": str(self.root)}
        whole = ["ip", "netns", "exec", NAMESPACE, *argv]
        return subprocess.run(whole, input=stdin, env=env, capture_output=True, text=True, check=False)

    async def execute(self, request: ExecRequest) -> ExecResult:
        done = self.run(*request.argv, stdin=request.stdin)
        return ExecResult(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)

    async def set(self, address: FailoverAddress = BOTH) -> AddressSet:
        (found,) = await set_addresses(self.execute, GuestOs.LINUX, [(NIC, address)])
        return found

    async def take_away(self) -> AddressSet:
        (found,) = await set_addresses(self.execute, GuestOs.LINUX, [(NIC, None)])
        assert (found.done, found.addresses, found.lasting) == (True, (), True), found
        return found


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        made = Guest(tmp_path)
        # A program of this host's must not be taken for the guest's.
        made.has("systemctl", "exit 3")
        made.has("nmcli", "exit 8")
        veth = ["link", "add", "lan0", "address", NIC.mac, "type", "veth", "peer", "name", "other"]
        assert made.run("ip", *veth).returncode == 0
        made.run("ip", "link", "set", "other", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


async def test_without_anybody_who_keeps_the_network_the_interface_has_them_at_once(guest: Guest) -> None:
    guest.run("ip", "addr", "add", "198.51.100.7/24", "dev", "lan0")
    (guest.root / "etc/resolv.conf").write_text("nameserver 198.51.100.53\n")
    found = await guest.set()
    assert (found.done, found.means, found.lasting) == (True, Means.IP, False), found
    shown = json.loads(guest.run("ip", "-json", "addr", "show", "dev", "lan0").stdout)
    addresses = {
        f"{each['local']}/{each['prefixlen']}" for each in shown[0]["addr_info"] if each["scope"] == "global"
    }
    assert addresses == {"192.0.2.10/24", "2001:db8::10/64"}
    for family, gateway in (("-4", "192.0.2.1"), ("-6", "2001:db8::1")):
        routes = json.loads(guest.run("ip", family, "-json", "route", "show", "default").stdout)
        assert [each["gateway"] for each in routes] == [gateway]
    names = guest.root / "etc/resolv.conf"
    assert names.read_text().splitlines()[1:] == ["nameserver 192.0.2.53"]
    assert (await guest.set()).done  # a second time as well
    assert (await guest.take_away()).means is Means.IP
    assert names.read_text() == "nameserver 198.51.100.53\n"
    assert (await guest.take_away()).done


async def test_nobody_asks_by_dhcp_on_that_interface_any_more(guest: Guest) -> None:
    def client(interface: str) -> subprocess.Popen[bytes]:
        argv = ["udhcpc", "-c", "read x; :", "-i", interface]
        return subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE)

    with client("lan0") as ours, client("lan01") as others:
        try:
            assert (await guest.set()).done
            assert ours.wait(5) == -signal.SIGTERM
            assert others.poll() is None
        finally:
            ours.kill()
            others.kill()


async def test_networkmanager_gets_a_profile_of_its_own(guest: Guest) -> None:
    guest.has("nmcli", 'case "$*" in *RUNNING*) echo running;; esac')
    found = await guest.set()
    assert (found.done, found.means, found.lasting) == (True, Means.NETWORK_MANAGER, True), found
    told = guest.told()
    assert "connection add type ethernet con-name holdfast-nic0 ifname lan0" in told
    assert (
        "ipv4.method manual ipv4.addresses 192.0.2.10/24 ipv4.gateway 192.0.2.1 ipv4.dns 192.0.2.53" in told
    )
    assert "ipv6.addresses 2001:db8::10/64 ipv6.gateway 2001:db8::1" in told
    assert "connection up holdfast-nic0" in told


async def test_netplan_gets_a_file_which_its_owner_alone_reads(guest: Guest) -> None:
    (guest.root / "etc/netplan/50-cloud-init.yaml").write_text("network: {}\n")
    guest.has("netplan")
    assert (await guest.set()).means is Means.NETPLAN
    file = guest.root / "etc/netplan/90-holdfast-nic0.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    ethernet = json.loads(file.read_text())["network"]["ethernets"]["holdfast-nic0"]
    assert ethernet["match"] == {"macaddress": NIC.mac}
    assert ethernet["addresses"] == ["192.0.2.10/24", "2001:db8::10/64"]
    assert "netplan apply" in guest.told()


async def test_networkd_gets_a_file_and_is_told_to_read_it(guest: Guest) -> None:
    guest.has("systemctl")
    guest.has("networkctl")
    assert (await guest.set()).means is Means.NETWORKD
    text = (guest.root / "etc/systemd/network/10-holdfast-nic0.network").read_text()
    assert f"MACAddress={NIC.mac}\n" in text
    assert "Address=2001:db8::10/64\nGateway=192.0.2.1\n" in text
    assert "networkctl reconfigure lan0" in guest.told()


async def test_what_fails_is_said_in_the_result(guest: Guest) -> None:
    guest.has("systemctl")
    guest.has("networkctl", "echo no such bus >&2; exit 1")
    found = await guest.set()
    assert not found.done and "no such bus" in found.why

    guest.run("ip", "link", "delete", "lan0")
    found = await guest.set()
    assert not found.done and NIC.mac in found.why

    async def gone(_: ExecRequest) -> ExecResult:
        raise HoldfastError("the guest agent has not answered\x1b[2J")

    (found,) = await set_addresses(gone, GuestOs.LINUX, [(NIC, BOTH)])
    assert (found.done, found.why) == (False, "the guest agent has not answered [2J")
    (found,) = await set_addresses(gone, GuestOs.WINDOWS, [(NIC, BOTH)])
    assert "windows" in found.why


async def test_what_was_set_is_taken_away_by_whom_it_was_set(guest: Guest) -> None:
    assert (await guest.take_away()).means is Means.IP  # nothing was set
    guest.has("systemctl")
    guest.has("networkctl")
    await guest.set()
    assert (await guest.take_away()).means is Means.NETWORKD
    assert list((guest.root / "etc/systemd/network").iterdir()) == []
    (guest.root / "etc/netplan/50-cloud-init.yaml").write_text("network: {}\n")
    guest.has("netplan")
    await guest.set()
    assert (await guest.take_away()).means is Means.NETPLAN
    assert [each.name for each in (guest.root / "etc/netplan").iterdir()] == ["50-cloud-init.yaml"]
    guest.has("nmcli", 'case "$*" in *RUNNING*) echo running;; esac')
    assert (await guest.take_away()).means is Means.NETWORK_MANAGER
    assert "connection delete holdfast-nic0\nnmcli device connect lan0" in guest.told()
