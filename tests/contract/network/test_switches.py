"""Real bridges, TAPs, dnsmasq and nftables in namespaces of the test's own."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.catalog.store import Catalog
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.network import links
from holdfast.network.addresses import SubnetInUse
from holdfast.network.links import InterfaceInUse, InterfaceMissing, NetworkFailed, VlansUnsupported
from holdfast.network.nat import remove_rules, table_prefix, tables
from holdfast.network.ports import Ports
from holdfast.network.switches import SwitchBoard, SwitchExists, SwitchInUse, SwitchMissing
from holdfast.spec.attachment import SlirpAttachment, TapAttachment
from holdfast.spec.ids import new_id
from holdfast.spec.switch import SwitchSpec, SwitchType
from holdfast.spec.vm import Nic

MAC = "02:00:00:00:00:01"


class Bench:
    def __init__(self, root: Path) -> None:
        self.state = StateFolder(root / "s", root / "r")
        self.state.prepare()
        self.catalog = Catalog.open(self.state.catalog)
        self.processes = Processes(self.state)
        self.board = SwitchBoard(self.catalog, self.state, self.processes)
        self.ports = Ports(self.board, self.state)


@pytest.fixture
async def bench(namespace: None) -> AsyncIterator[Bench]:
    root = Path("/tmp") / f"hfn-{new_id()[:8]}"
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    bench = Bench(root)
    yield bench
    for marked in bench.processes.find():
        await bench.processes.end(marked.ref, grace=1)
    bench.catalog.close()
    shutil.rmtree(root)


def internal(name: str = "Lab", subnet: str | None = "10.77.1.0/24") -> SwitchSpec:
    return SwitchSpec(name=name, type=SwitchType.INTERNAL, subnet=subnet)


async def lease(peer: Any, name: str) -> Any:
    argv = ("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "8", "-T", "1", "-s", "/bin/true")
    return await asyncio.to_thread(peer.run, name, *argv)


async def test_a_guest_gets_a_lease_a_name_and_a_way_out(bench: Bench, peer: Any) -> None:
    outside = peer.add("up0")
    links_ = ("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
    assert peer.run(outside, *links_).returncode == 0
    await bench.processes.run(["ip", "addr", "add", "192.0.2.1/24", "dev", "up0"], owner="host")
    await bench.board.create(internal())
    bridge = bench.board.bridge("lab")
    guest = peer.add("vm0", MAC)
    await asyncio.to_thread(links.join, bridge, "vm0", None)
    nic = Nic(id="nic0", mac=MAC, switch="lab")
    tap = await bench.ports.attach(new_id(), "Web Server", nic)
    assert isinstance(tap, TapAttachment)
    got = await lease(peer, guest)
    assert "lease of 10.77.1." in got.stderr + got.stdout, got
    (address,) = await bench.ports.addresses(nic)
    assert address.startswith("10.77.1.")
    peer.run(guest, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    peer.run(guest, "ip", "route", "add", "default", "via", "10.77.1.1")
    answer = peer.run(guest, "busybox", "nslookup", "web-server.lab.holdfast.internal", "10.77.1.1")
    assert address in answer.stdout, answer
    # The server has no route back to the guest, so an answer proves translation.
    assert peer.run(guest, "busybox", "ping", "-c", "1", "-W", "3", "192.0.2.2").returncode == 0
    back = ("ip", "route", "add", "10.77.1.0/24", "via", "192.0.2.1")
    assert peer.run(outside, *back).returncode == 0
    assert peer.run(outside, "busybox", "ping", "-c", "1", "-W", "1", address).returncode != 0
    os.close(tap.fd)


async def test_vlans_part_two_ports_and_join_two_others(bench: Bench, peer: Any) -> None:
    await bench.board.create(SwitchSpec(name="dark", type=SwitchType.PRIVATE))
    bridge = bench.board.bridge("dark")
    guests = []
    for number, vlan in enumerate((10, 10, 20)):
        guests.append(peer.add(f"vm{number}"))
        try:
            await asyncio.to_thread(links.join, bridge, f"vm{number}", vlan)
        except VlansUnsupported:
            pytest.skip("this kernel has no VLAN filtering in bridges")
        peer.run(guests[-1], "ip", "addr", "add", f"10.9.0.{number + 1}/24", "dev", "eth0")
    assert peer.run(guests[0], "busybox", "ping", "-c", "1", "-W", "3", "10.9.0.2").returncode == 0
    assert peer.run(guests[0], "busybox", "ping", "-c", "1", "-W", "1", "10.9.0.3").returncode != 0


async def test_what_was_killed_or_deleted_is_made_again(bench: Bench, peer: Any) -> None:
    await bench.board.create(internal())
    assert await bench.board.reconcile() == []
    (first,) = bench.processes.find(role="dnsmasq")
    os.kill(first.ref.pid, signal.SIGKILL)
    await bench.processes.wait(first.ref)
    await asyncio.to_thread(links.remove_link, bench.board.bridge("lab"))
    (table,) = await tables(bench.processes, table_prefix(bench.state.mark))
    await remove_rules(bench.processes, table)
    stray = links.bridge_name(bench.state.mark, "nobody's")
    await asyncio.to_thread(links.ensure_bridge, stray, None)
    assert await bench.board.reconcile() == []
    assert await asyncio.to_thread(links.links, "hfb") == [bench.board.bridge("lab")]
    assert len(await tables(bench.processes, table_prefix(bench.state.mark))) == 1
    guest = peer.add("vm0", MAC)
    await asyncio.to_thread(links.join, bench.board.bridge("lab"), "vm0", None)
    got = await lease(peer, guest)
    assert "lease of 10.77.1." in got.stderr + got.stdout, got


async def test_delete_removes_everything_and_refuses_while_in_use(bench: Bench) -> None:
    await bench.board.create(internal())
    nic = Nic(id="nic0", mac=MAC, switch="LAB")
    tap = await bench.ports.attach(new_id(), "web", nic)
    assert isinstance(tap, TapAttachment)
    assert os.get_inheritable(tap.fd)
    assert tap.interface in await asyncio.to_thread(links.members, bench.board.bridge("lab"))
    with pytest.raises(SwitchInUse):
        await bench.board.delete("lab")
    os.close(tap.fd)
    assert await asyncio.to_thread(links.links, "hft") == []
    await bench.board.delete("lab")
    assert await asyncio.to_thread(links.links, "hf") == []
    assert await tables(bench.processes, table_prefix(bench.state.mark)) == []
    assert bench.processes.find(role="dnsmasq") == []
    assert list(bench.state.switches.iterdir()) == []
    assert await bench.board.all() == []
    with pytest.raises(SwitchMissing):
        await bench.board.get("lab")


async def test_bad_wishes_are_refused_and_leave_nothing(bench: Bench, peer: Any) -> None:
    await bench.board.create(internal())
    with pytest.raises(SwitchExists):
        await bench.board.create(SwitchSpec(name="LAB", type=SwitchType.PRIVATE))
    with pytest.raises(SubnetInUse):
        await bench.board.create(internal("two", "10.77.0.0/16"))
    with pytest.raises(InterfaceMissing):
        await bench.board.create(SwitchSpec(name="ext", type=SwitchType.EXTERNAL, interface="none0"))
    with pytest.raises(InterfaceInUse):
        await bench.board.create(SwitchSpec(name="ext", type=SwitchType.EXTERNAL, interface="lo"))
    assert [spec.name for spec in await bench.board.all()] == ["Lab"]
    peer.add("up0")
    await bench.board.create(SwitchSpec(name="ext", type=SwitchType.EXTERNAL, interface="up0"))
    assert await asyncio.to_thread(links.members, bench.board.bridge("ext")) == ["up0"]
    await bench.board.delete("ext")
    assert "up0" in await asyncio.to_thread(links.links, "up")


async def test_no_switch_and_a_user_switch_mean_user_mode(bench: Bench) -> None:
    await bench.board.create(SwitchSpec(name="plain", type=SwitchType.USER))
    for switch in (None, "plain"):
        nic = Nic(id="nic0", mac=MAC, switch=switch)
        assert isinstance(await bench.ports.attach(new_id(), "My VM", nic), SlirpAttachment)
        assert await bench.ports.addresses(nic) == ()


async def test_the_host_has_no_address_on_a_private_switch(bench: Bench) -> None:
    await bench.board.create(SwitchSpec(name="dark", type=SwitchType.PRIVATE))
    bridge = bench.board.bridge("dark")
    # A bridge has link-local addresses only with a port that is up.
    tap = await bench.ports.attach(new_id(), "web", Nic(id="nic0", mac=MAC, switch="dark"))
    assert isinstance(tap, TapAttachment)
    done = await bench.processes.run(["ip", "-o", "addr", "show", "dev", bridge], owner="host")
    os.close(tap.fd)
    assert done.returncode == 0
    assert done.stdout == b""


async def test_a_switch_that_cannot_be_made_leaves_no_record(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(NetworkFailed):
            await bench.board.create(internal())
    assert await bench.board.all() == []
    await bench.board.reconcile()
    assert await asyncio.to_thread(links.links, "hf") == []
