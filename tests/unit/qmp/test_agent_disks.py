"""Disks as guests' agents tell of them."""

import pytest

from holdfast.qmp.agent_disks import GuestDisk


@pytest.mark.parametrize(
    ("serial", "ours"),
    [
        ("disk1", True),
        ("0QEMU_QEMU_HARDDISK_disk1", True),
        ("QEMU_NVMe_Ctrl_disk1", True),
        ("QEMU_NVMe_Ctrl_disk1_1", True),
        ("QEMU_NVMe_Ctrl_disk11_1", False),
        ("disk11", False),
        ("disk", False),
        ("", False),
    ],
)
def test_a_disk_is_known_by_its_serial(serial: str, ours: bool) -> None:
    assert GuestDisk("/dev/sda", serial).is_disk("disk1") is ours
