"""What waits for a VM's start: made with the real virt-fw-vars, or said and left for later."""

import asyncio
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from boot_disks import boot_disk, boot_programs

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.attachment import Layer
from holdfast.spec.vm import Disk, UefiBoot, VmSpec, VmState
from holdfast.trust.authenticode import examine
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.key_changes import KeyChange, successors
from holdfast.trust.key_stores import KeyStores
from holdfast.trust.signature_lists import SHA256, Signature
from holdfast.vm.pending_keys import before_start

_UPDATE = KeyChange(successors=True)


class Bench:
    """The parts of a host that a start asks, with one VM named web."""

    def __init__(self, root: Path, store: bytes, files: dict[str, Path]) -> None:
        state = StateFolder(root / "state", root / "run")
        state.prepare()
        processes = Processes(state)
        disk = boot_disk(root / "disk.raw", files, 8)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.keys = KeyStores(processes, state, VariableStores(processes, state))
        self.rooms: Any = SimpleNamespace(
            state=state,
            keys=self.keys,
            events=self,
            looking=asyncio.Semaphore(2),
            volumes=SimpleNamespace(chain=lambda *_: (Layer.of_file(disk, "raw"),)),
        )
        spec = VmSpec(
            cpus=1, memory=2**29, boot=UefiBoot(), disks=(Disk(id="disk0", volume="disk0", size=2**30),)
        )
        self.record: Any = SimpleNamespace(id="1", name="web", spec=spec, state=VmState.STARTING)
        self.folder = state.vm("web")
        (self.folder / "firmware").mkdir(parents=True)
        self.path = self.folder / "firmware/variables.fd"
        self.path.write_bytes(store)

    async def emit(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        assert subject == "web"
        self.told.append((kind, data))

    async def start(self) -> list[str]:
        """Kinds of what was told."""
        self.told.clear()
        await before_start(self.rooms, self.record)
        return [kind for kind, _ in self.told]


@pytest.fixture
def bench(tmp_path: Path, store_of_2011: bytes) -> Bench:
    return Bench(tmp_path, store_of_2011, {"EFI/BOOT/BOOTX64.EFI": boot_programs()["shim"]})


async def test_a_start_makes_what_waits_once(bench: Bench, store_of_2011: bytes) -> None:
    assert await bench.start() == [] and bench.path.read_bytes() == store_of_2011
    bench.keys.record(bench.folder, _UPDATE, "1")
    assert await bench.start() == ["vm.certificates-changed"]
    assert successors(bench.keys.read(bench.folder).keys) == ()
    assert not bench.keys.is_pending(bench.folder)
    assert await bench.start() == []
    # Killed between the new store and the end of the record: nothing is left to be done.
    bench.keys.record(bench.folder, _UPDATE, "1")
    before = bench.path.read_bytes()
    assert await bench.start() == [] and bench.path.read_bytes() == before
    assert not bench.keys.is_pending(bench.folder)


async def test_what_would_not_boot_by_now_waits_on_and_the_vm_starts(
    bench: Bench, store_of_2011: bytes
) -> None:
    digest = bytes.fromhex(examine(boot_programs()["shim"].read_bytes()).sha256)
    revoked = KeyChange(added={"dbx": (Signature(SHA256, uuid.UUID(int=1), digest),)})
    bench.keys.record(bench.folder, revoked, "1")
    assert await bench.start() == ["vm.certificates-not-changed"]
    assert "would not boot" in bench.told[0][1]["error"]
    assert bench.path.read_bytes() == store_of_2011 and bench.keys.is_pending(bench.folder)


async def test_a_record_that_cannot_be_read_is_said(bench: Bench, store_of_2011: bytes) -> None:
    (bench.folder / "firmware/keys.pending").write_bytes(b"{")
    assert await bench.start() == ["vm.certificates-not-changed"]
    assert bench.path.read_bytes() == store_of_2011
