"""The same code against govmomi's vCenter simulator, which others wrote and Debian packages.

It knows sessions, inventory, settings, snapshots, tasks, power and datastore files; exports and changed
areas it does not, so for those there is only the fake of `tests/machines`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.spec.appliance import FirmwareKind, ImportChoices, ImportPlan
from holdfast.spec.units import TIB
from holdfast.spec.vsphere import parse_address
from holdfast.storage.vsphere.certificate import Pins, require_trusted
from holdfast.storage.vsphere.machine import Machine
from holdfast.storage.vsphere.mapping import to_appliance
from holdfast.storage.vsphere.refusals import VsphereLoginRefused, VsphereVmNotFound
from holdfast.storage.vsphere.session import Session
from holdfast.vm.import_plan import HostFacts, plan_import
from holdfast.vm.import_room import PoolFacts
from holdfast.vm.vsphere_importing import server_facts

sys.path.append(str(Path(__file__).parents[2] / "guests"))

from fake_vsphere import certificate

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent / "vcenter" / "main.go"
HOST = HostFacts((), 8, TIB, TIB, {}, frozenset(), frozenset(), pools={"fast": PoolFacts("fast", TIB)})


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and thumbprint."""
    folder = tmp_path_factory.mktemp("vcenter")
    pem, thumbprint = certificate(folder)
    library = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(folder / "cache")}
    subprocess.run(
        ["go", "build", "-o", folder / "vcenter", SOURCE], env={**os.environ, **library}, check=True
    )
    argv = [folder / "vcenter", pem]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin and running.stdout
        yield f"vsphere://{running.stdout.readline().strip()}", thumbprint
        running.stdin.close()


def ids(plan: ImportPlan) -> set[str]:
    return {each.id for each in plan.findings}


def opened(vcenter: tuple[str, str], folder: Path, password: str = "any") -> Session:
    address = parse_address(vcenter[0])
    pins = Pins(folder / "pins.json")
    trust = require_trusted(address.host, address.port, address.server, vcenter[1], pins)
    return Session(address, "user", password, trust)


def test_the_inventory_is_listed_and_a_vm_found_and_mapped(vcenter: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(VsphereLoginRefused):
        opened(vcenter, tmp_path, password="")
    session = opened(vcenter, tmp_path)
    try:
        listed = session.machines()
        assert [each.name for each in listed] == [
            *("DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1", "DC0_H0_VM0", "DC0_H0_VM1")
        ]
        assert {each.datacenter for each in listed} == {"DC0"} and all(each.running for each in listed)
        with pytest.raises(VsphereVmNotFound):
            session.find("DC0", "nobody")
        moid, datacenter = session.find("DC0", "DC0_H0_VM0")
        appliance = to_appliance(Machine(session, moid, datacenter).described(), warm=False)
        assert appliance.name == "DC0_H0_VM0" and appliance.firmware is FirmwareKind.BIOS
        assert [disk.bus for disk in appliance.disks] == ["scsi"] and appliance.disks[0].capacity
        assert appliance.nics[0].network == "DC0_DVPG0" and appliance.nics[0].mac
        choices = ImportChoices(pools={"*": "fast"})
        plan = plan_import(appliance, server_facts(appliance), HOST, choices)
        assert [disk.pool for disk in plan.disks] == ["fast"] and "pool-not-found" not in ids(plan)
        assert {room.pool: room.free for room in plan.space} == {"local": TIB, "fast": TIB}
        nowhere = choices.model_copy(update={"pools": {"disk0": "nowhere"}})
        assert "pool-not-found" in ids(plan_import(appliance, server_facts(appliance), HOST, nowhere))
    finally:
        session.close()


def test_a_snapshot_is_taken_found_and_removed_and_the_guest_shut_down(
    vcenter: tuple[str, str], tmp_path: Path
) -> None:
    session = opened(vcenter, tmp_path)
    try:
        machine = Machine(session, *session.find(None, "DC0_H0_VM1"))
        snapshot = machine.take_snapshot("holdfast-test-0")
        assert machine.snapshots("holdfast-test-") == [snapshot]
        (disk,) = machine.disks(snapshot).values()
        assert disk.plain and disk.size and disk.file.endswith("DC0_H0_VM1/disk1.vmdk")
        machine.remove_snapshots("holdfast-test-")
        machine.remove_snapshots("holdfast-test-")
        assert machine.snapshots("holdfast-test-") == []
        machine.shut_down(30)
        assert not machine.running()
        machine.power_on()
        assert machine.running()
    finally:
        session.close()
