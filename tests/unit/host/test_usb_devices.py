"""USB devices in a made sysfs."""

import os
from pathlib import Path

import pytest

from holdfast.host.usb_devices import (
    UsbDeviceAmbiguous,
    UsbDeviceNotFound,
    UsbDeviceNotUsable,
    find_usb,
    open_usb,
    usb_devices,
)


def plug(root: Path, name: str, model: str, number: int, kind: str = "00", product: str = "Stick") -> None:
    folder = root / "sys/bus/usb/devices" / name
    folder.mkdir(parents=True)
    vendor, _, part = model.partition(":")
    told = {"idVendor": vendor, "idProduct": part, "devnum": number, "bDeviceClass": kind, "product": product}
    for file, text in told.items():
        (folder / file).write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plug(tmp_path, "usb1", "1d6b:0002", 1, "09")
    plug(tmp_path, "1-1", "05e3:0608", 2, "09")
    plug(tmp_path, "1-1.2", "046D:c31c", 3, product="Key\x1b[31mboard" + "x" * 1000)
    plug(tmp_path, "1-2", "0951:1666", 4)
    plug(tmp_path, "2-1", "0951:1666", 2)
    plug(tmp_path, "2-2", "broken:", 5)
    (tmp_path / "sys/bus/usb/devices/1-1:1.0").mkdir()
    return tmp_path


def test_devices_are_listed_without_hubs_and_interfaces(root: Path) -> None:
    assert [each.place for each in usb_devices(root)] == ["1.1.2", "1.2", "2.1"]
    keyboard = usb_devices(root)[0]
    assert keyboard.name.isprintable() and len(keyboard.name) <= 256
    assert usb_devices(root / "nowhere") == []


def test_a_device_is_found_by_model_or_by_place(root: Path) -> None:
    assert find_usb("046d:C31C", root).place == find_usb("1.1.2", root).place == "1.1.2"
    with pytest.raises(UsbDeviceAmbiguous) as several:
        find_usb("0951:1666", root)
    assert "1.2" in several.value.cure and "2.1" in several.value.message
    assert find_usb("2.1", root).address == 2
    with pytest.raises(UsbDeviceNotFound):
        find_usb("1.1", root)  # a hub


def test_the_node_is_opened_but_never_followed(root: Path) -> None:
    device = find_usb("1.2", root)
    with pytest.raises(UsbDeviceNotUsable):
        open_usb(device, root)
    node = root / "dev/bus/usb/001/004"
    node.parent.mkdir(parents=True)
    node.write_bytes(b"")
    os.close(open_usb(device, root))
    node.unlink()
    node.symlink_to("/dev/null")
    with pytest.raises(UsbDeviceNotUsable):
        open_usb(device, root)
