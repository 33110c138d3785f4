"""Rounds from a (fake) vCenter into a real volume, cut off at the worst moments."""

import asyncio
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.operations.procedure import Job
from holdfast.spec.attachment import Layer
from holdfast.spec.vm import Disk
from holdfast.spec.vsphere import parse_address
from holdfast.storage.vsphere.certificate import Pins, require_trusted
from holdfast.storage.vsphere.machine import Machine
from holdfast.storage.vsphere.refusals import VsphereDiskUnreadable
from holdfast.storage.vsphere.session import Session, asked
from holdfast.storage.vsphere.transfer import Patience
from holdfast.vm.vsphere_copy import Rounds

sys.path.append(str(Path(__file__).parents[2] / "guests"))

from fake_vsphere import PASSWORD, USER, FakeVsphere, serving
from vsphere_vms import FakeDisk, FakeVm

MIB = 1 << 20
SIZE = 4 * MIB
KEY = 2000


class Crash(Exception):
    pass


class Host:
    """One operation and its volume, without a daemon."""

    def __init__(self, folder: Path) -> None:
        self.state = StateFolder(folder / "state", folder / "r")
        self.state.prepare()
        self.volume = self.state.vms / "disk0.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.volume, str(SIZE)], check=True)
        self.kept: dict[str, Any] = {}

    async def copy(
        self, fake: FakeVsphere, *, crash: Callable[[dict[str, Any]], bool] = lambda _: False
    ) -> None:
        """A round that goes on with the notes that were kept; `crash`: whether it ends before these are."""
        with self.session(fake) as session:
            machine = Machine(session, "vm-7", "Lab %2f One")
            rounds = self._rounds(machine, crash)
            await (rounds.copy("round") if fake.vms[0].running else rounds.copy_off("disks"))

    @contextmanager
    def session(self, fake: FakeVsphere) -> Iterator[Session]:
        address, pins = parse_address(f"{fake.address}/web"), Pins(self.state.root / "pins")
        trust = require_trusted(address.host, address.port, address.server, fake.thumbprint, pins)
        session = Session(address, USER, PASSWORD, trust)
        try:
            yield session
        finally:
            session.close()

    def _rounds(self, machine: Machine, crash: Callable[[dict[str, Any]], bool]) -> Rounds:
        job: Job

        async def keep() -> None:
            if crash(job.notes):
                raise Crash
            self.kept = copy.deepcopy(job.notes)

        job = Job(
            "0123456789", "k", "web", "a", {"keys": {"disk0": KEY}}, copy.deepcopy(self.kept),
            lambda part, text: None, keep,
        )  # fmt: skip
        disk = Disk(id="disk0", volume="disk0", size=SIZE)
        owner = SimpleNamespace(record=SimpleNamespace(name="web", spec=SimpleNamespace(disks=(disk,))))
        rooms = SimpleNamespace(state=self.state, processes=Processes(self.state), volumes=self)
        return Rounds(rooms, job, owner, machine, None, Patience(pauses=()))  # type: ignore[arg-type]

    def chain(self, vm: str, disk: Disk) -> tuple[Layer, ...]:
        return (Layer.of_file(self.volume, "qcow2"),)

    async def released(self, vm: str, disks: list[Disk]) -> None:
        pass

    async def grant(self, vm: str, disk: Disk, identity: None) -> None:
        pass

    def require_same(self, disk: FakeDisk) -> None:
        raw = self.state.scratch / "raw"
        raw.write_bytes(disk.content)
        argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, self.volume]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="hf-rounds-"))
    yield Host(folder)
    shutil.rmtree(folder)


@contextmanager
def vcenter(folder: Path, **more: Any) -> Iterator[FakeVsphere]:
    disk = FakeDisk(KEY, bytearray(SIZE))
    disk.write(0, random.Random(1).randbytes(2 * MIB))
    with serving(FakeVsphere([FakeVm("vm-7", "web", [disk], **more)]), folder) as fake:
        yield fake


def change(vm: FakeVm) -> None:
    """The guest clears what was there, and writes elsewhere."""
    vm.disks[0].write(MIB, bytes(MIB))
    vm.disks[0].write(3 * MIB, b"new" * 1000)


def copied(notes: dict[str, Any]) -> bool:
    return bool(notes["disks"]["disk0"]["done"] == SIZE)


async def test_what_was_cancelled_disturbs_nothing_else_in_its_session(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path) as fake, host.session(fake) as session:
        vm = session.object(vim.VirtualMachine, "vm-7")
        power = "runtime.powerState"
        waiting = asyncio.create_task(asked(session.wait, vm, power, lambda _: False, 60.0))
        while "WaitForUpdatesEx" not in fake.asked:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asked(session.wait, vm, power, lambda _: True, 60.0) == "poweredOn"


async def test_a_round_goes_on_with_its_snapshot(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path) as fake:
        (vm,) = fake.vms
        with pytest.raises(BaseExceptionGroup):
            await host.copy(fake, crash=copied)
        (before,) = vm.snapshots
        change(vm)
        await host.copy(fake)
        assert fake.asked.count("CreateSnapshot_Task") == 1 and not vm.snapshots
        assert bytes(vm.disks[0].content) != before.content[KEY]
        await host.copy(fake)
        host.require_same(vm.disks[0])


async def test_a_round_whose_snapshot_was_removed_there_begins_anew(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path) as fake:
        (vm,) = fake.vms
        with pytest.raises(BaseExceptionGroup):
            await host.copy(fake, crash=copied)
        vm.snapshots.clear()
        vm.disks[0].writes.clear()  # so that what was cleared is in no list of what was ever written
        vm.disks[0].content[:] = bytes(SIZE)
        vm.disks[0].write(3 * MIB, b"new" * 1000)
        await host.copy(fake)
        host.require_same(vm.disks[0])
        assert not vm.snapshots


async def test_a_vm_that_was_started_between_two_exports_is_brought_anew(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path, running=False, tracked=False) as fake:
        (vm,) = fake.vms
        await host.copy(fake)
        change(vm)
        await host.copy(fake)
        with pytest.raises(AssertionError):  # by its version it is what it was, and all of it is here
            host.require_same(vm.disks[0])
        vm.version = "2"
        await host.copy(fake)
        host.require_same(vm.disks[0])


async def test_a_disk_whose_tracking_began_anew_is_read_whole(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path) as fake:
        (vm,) = fake.vms
        await host.copy(fake)
        change(vm)
        vm.disks[0].writes.clear()
        vm.tracking = "52 aa bb cc dd"
        await host.copy(fake)
        host.require_same(vm.disks[0])


async def test_a_disk_that_was_added_there_is_not_left_behind(host: Host, tmp_path: Path) -> None:
    with vcenter(tmp_path) as fake:
        fake.vms[0].disks.append(FakeDisk(KEY + 1, bytearray(MIB)))
        with pytest.raises(VsphereDiskUnreadable) as refused:
            await host.copy(fake)
        assert refused.value.value == KEY + 1
