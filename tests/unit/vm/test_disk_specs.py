"""Disks in specifications: put in, taken out, renamed to move, and told of."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.spec.units import GIB
from holdfast.spec.vm import Disk, DiskBus, UsbDevice, VmSpec, VolumeFormat
from holdfast.vm import disk_specs, layers
from holdfast.vm.disk_moving import new_names
from holdfast.vm.disk_specs import DiskNotFound, MemoryNotMovable
from holdfast.vm.records import VmRecord


def disk(id: str, *chain: str, **more: object) -> Disk:
    names = chain or (id,)
    return Disk.model_validate({"id": id, "volume": names[0], "below": names[1:], "size": GIB, **more})


def spec(*disks: Disk, **more: object) -> VmSpec:
    return VmSpec.model_validate({"cpus": 1, "memory": GIB, "disks": disks, **more})


def record(then: VmSpec, now: VmSpec | None = None) -> VmRecord:
    return cast(VmRecord, SimpleNamespace(name="web", spec=then, running_spec=now))


def ids(found: VmSpec) -> list[str]:
    return [each.id for each in found.disks]


def test_the_lowest_free_id_is_that_of_no_specification() -> None:
    assert disk_specs.free_id([]) == disk_specs.free_id([spec()]) == "disk0"
    assert disk_specs.free_id([spec(disk("disk0"), disk("disk2"))]) == "disk1"
    kept = [spec(disk("disk0")), spec(disk("disk0"), disk("disk1")), spec(disk("disk3"))]
    assert disk_specs.free_id(kept) == "disk2"


def test_a_disk_is_put_in_once_and_taken_out_again() -> None:
    before = spec(disk("disk0"))
    after = disk_specs.with_disk(disk("disk1"))(before)
    assert ids(after) == ["disk0", "disk1"]
    again = disk_specs.with_disk(disk("disk1", bus="scsi"))(after)
    assert ids(again) == ["disk0", "disk1"] and again.disks[1].bus is DiskBus.SCSI
    assert disk_specs.without_disk("disk1")(again) == before
    assert disk_specs.without_disk("disk7")(before) == before
    grown = disk_specs.with_update("disk0", size=2 * GIB)(after)
    assert [each.size for each in grown.disks] == [2 * GIB, GIB]
    assert disk_specs.with_update("disk7", size=1)(after) == after


def test_a_disk_is_found_as_the_machine_has_it() -> None:
    then, now = spec(disk("disk0", bus="scsi"), disk("disk2")), spec(disk("disk0"), disk("disk1"))
    found = [disk_specs.named(record(then, now), each) for each in ("disk0", "disk1", "disk2")]
    assert [each.bus for each in found] == [DiskBus.VIRTIO] * 3
    assert disk_specs.named(record(then), "disk0").bus is DiskBus.SCSI
    with pytest.raises(DiskNotFound) as caught:
        disk_specs.named(record(then), "x" * 1000)
    assert len(caught.value.message) < 200


def shown(then: VmSpec, now: VmSpec | None, name: str = "disk0", **more: Any) -> tuple[Any, ...]:
    found = disk_specs.view(record(then, now), name, 5, **{"runs": now is not None, **more})
    assert found.stored == 5
    return found.plugged, found.after_next_start, found.pending, len(found.notices)


def test_what_is_and_what_comes_are_told_apart() -> None:
    one, both = spec(disk("disk0")), spec(disk("disk0"), disk("disk1"))
    assert shown(one, None) == (False, True, {}, 0)
    assert shown(one, one) == (True, True, {}, 0)
    assert shown(both, one, "disk1") == (False, True, {}, 1)
    assert shown(one, both, "disk1") == (True, False, {}, 1)
    moved = spec(disk("disk0", bus="scsi"))
    assert shown(moved, one) == (True, True, {"bus": "scsi"}, 1)
    assert shown(moved, one, runs=False) == (False, True, {}, 0), "left by a machine that ended"
    with pytest.raises(DiskNotFound):
        shown(one, one, "disk1")


def test_a_device_of_the_host_has_no_volumes_and_says_so() -> None:
    device = disk("disk0", device="/dev/disk/by-id/x", format="raw")
    found = disk_specs.view(record(spec(device)), "disk0", 0, runs=False)
    assert (found.layers, found.device) == ((), "/dev/disk/by-id/x")
    assert "/dev/disk/by-id/x" in found.notices[0]


def test_memory_is_written_out_only_where_qemu_can_carry_every_device() -> None:
    disk_specs.require_movable_memory(record(spec(disk("disk0"))))
    nvme = spec(disk("disk0"), disk("disk1", bus="nvme"))
    with pytest.raises(MemoryNotMovable) as caught:
        disk_specs.require_movable_memory(record(spec(disk("disk0")), nvme))
    assert caught.value.value == ["disk1"] and "move-disk web disk1" in caught.value.cure
    disk_specs.require_movable_memory(record(nvme, spec(disk("disk0"))))
    with pytest.raises(MemoryNotMovable, match="usb0"):
        usb = (UsbDevice(id="usb0", host="1.2"),)
        disk_specs.require_movable_memory(record(spec(disk("disk0"), usb=usb)))


def test_copies_of_layers_have_names_that_nothing_has() -> None:
    specs = [
        spec(disk("disk0", "disk0-3", "disk0"), disk("disk1")),
        spec(disk("disk0", "disk0-1", "disk0")),
    ]
    names = new_names(specs, "disk0")
    assert names.keys() == {"disk0", "disk0-1", "disk0-3"}
    assert len(set(names.values())) == 3 and not set(names.values()) & names.keys()
    assert all(name.startswith("disk0-") for name in names.values())
    assert new_names(specs, "disk1") == {"disk1": "disk1-1"}
    with pytest.raises(KeyError):
        new_names(specs, "disk7")


def test_a_disk_that_was_carried_over_keeps_its_chain() -> None:
    before = spec(disk("disk0", "disk0-2", "disk0", format="raw"), disk("disk1", pool="old"))
    names = new_names([before], "disk0")
    after = layers.carried(before, "disk0", names, "fast")
    moved, other = after.disks
    assert (moved.volume, moved.below) == (names["disk0-2"], (names["disk0"],))
    assert (moved.pool, moved.format, other) == ("fast", VolumeFormat.RAW, before.disks[1])
    back = {new: old for old, new in names.items()}
    assert layers.carried(after, "disk0", back, None) == before
    assert layers.carried(before, "disk7", names, "fast") == before
    with pytest.raises(KeyError):
        layers.carried(before, "disk0", {"disk0": "disk0-9"}, "fast")
