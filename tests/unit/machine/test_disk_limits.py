"""What QEMU is told of a disk's limits and of its sectors."""

from pathlib import Path

import pytest

from holdfast.machine.devices.disks import front, throttle_limits, throttle_object
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.units import MIB
from holdfast.spec.vm import DiskBus, IoLimits


def attachment(bus: DiskBus = DiskBus.VIRTIO, **more: object) -> DiskAttachment:
    layer = Layer.of_file(Path("/vms/web/disk1.qcow2"), "qcow2", "disk1")
    return DiskAttachment.model_validate({"id": "disk1", "bus": bus, "layers": (layer,), **more})


def told(limits: IoLimits) -> dict[str, int]:
    """Of what QEMU is told that which is not its default."""
    every = throttle_limits(limits)
    assert len(every) == 18, "each time the whole of it, so that what held before is lifted"
    return {
        name: value for name, value in every.items() if value != (1 if name.endswith("-max-length") else 0)
    }


def test_no_limits_are_noughts() -> None:
    assert told(IoLimits()) == {}
    assert told(IoLimits(burst_seconds=9)) == {}
    assert throttle_object(attachment()) == {"qom-type": "throttle-group", "id": "tg-disk1"}


def test_each_limit_has_its_own_burst() -> None:
    assert told(IoLimits(iops=500, burst_iops=2000, burst_seconds=10)) == {
        "iops-total": 500,
        "iops-total-max": 2000,
        "iops-total-max-length": 10,
    }
    limits = IoLimits(iops_read=7, bandwidth_read=MIB, bandwidth_write=2 * MIB, burst_bandwidth=4 * MIB)
    assert told(limits) == {
        "iops-read": 7,
        "bps-read": MIB,
        "bps-read-max": 4 * MIB,
        "bps-write": 2 * MIB,
        "bps-write-max": 4 * MIB,
    }
    assert throttle_object(attachment(limits=limits))["limits"] == throttle_limits(limits)


@pytest.mark.parametrize("bus", DiskBus)
def test_the_guest_sees_the_sectors_of_a_device(bus: DiskBus) -> None:
    place = None if bus is DiskBus.SCSI else 1
    assert not {name for name in front(attachment(bus), 1, place) if name.endswith("block_size")}
    large = front(attachment(bus, sector=4096), 1, place)
    assert (large["logical_block_size"], large["physical_block_size"]) == (4096, 4096)
