"""What is refused of checkpoints before anything changes, told from records alone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.spec.units import GIB
from holdfast.spec.vm import Disk, DiskBus, VmSpec, VmState
from holdfast.vm.checkpoint_records import CheckpointNameTaken, CheckpointNotFound, CheckpointTree
from holdfast.vm.checkpoints import ChainTooDeep, Checkpoints, GuardedVm, TooManyCheckpoints
from holdfast.vm.disk_specs import MemoryNotMovable, require_movable_memory


def checkpoint(hours: int) -> Any:
    return SimpleNamespace(id=str(hours), name=f"{hours} ago")


def owner(*, bus: DiskBus = DiskBus.VIRTIO, layers: int = 1, guarded: bool = False) -> Any:
    below = tuple(f"disk0-{number}" for number in range(layers - 1))
    disk = Disk(id="disk0", volume="disk0", below=below, size=GIB, bus=bus)
    spec = VmSpec(cpus=1, memory=GIB, disks=(disk,), require_attested_host=guarded)
    record = SimpleNamespace(name="web", spec=spec, running_spec=None, state=VmState.RUNNING)
    return SimpleNamespace(record=record)


def test_a_disk_on_the_nvme_bus_rules_memory_out() -> None:
    require_movable_memory(owner().record)
    with pytest.raises(MemoryNotMovable) as caught:
        require_movable_memory(owner(bus=DiskBus.NVME).record)
    assert caught.value.value == ["disk0"]


def test_too_many_checkpoints_and_too_deep_chains_are_refused() -> None:
    asked = Checkpoints(cast(Any, None), cast(Any, None), cast(Any, None))
    asked._require_room(owner(layers=49), CheckpointTree())
    with pytest.raises(ChainTooDeep):
        asked._require_room(owner(layers=50), CheckpointTree())
    many = CheckpointTree(tuple(checkpoint(hours) for hours in range(50)))
    with pytest.raises(TooManyCheckpoints):
        asked._require_room(owner(), many)
    with pytest.raises(GuardedVm):
        asked._require_unguarded(owner(guarded=True))


def test_names_are_the_same_in_any_case() -> None:
    tree = CheckpointTree((checkpoint(1),))
    assert tree.named("1 AGO").name == "1 ago"
    with pytest.raises(CheckpointNotFound):
        tree.named("2 ago")
    with pytest.raises(CheckpointNameTaken):
        tree.require_free("1 Ago")
