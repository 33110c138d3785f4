"""The descriptor of an export: well-formed, in the schema's order, and complete.

DMTF's schema (DSP8023) is in no package, so that its order of elements is checked by hand; against the
schema itself where HOLDFAST_OVF_SCHEMA names its file and those that it imports lie beside it.
"""

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from holdfast.spec.units import GIB, MIB
from holdfast.spec.vm import Disk, DiskBus, GuestOs, KernelBoot, Nic, UefiBoot, VmSpec
from holdfast.spec.vm_export import DiskFormat
from holdfast.storage.ovf_writer import STATE_KEY, ExportedDisk, ExportedFile, descriptor, manifest

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"
NAME = "a&b <\"c'>"
VM_ID = "564d0102-0304-0506-0708-090a0b0c0d0e"


def spec(disks: int = 2, **more: object) -> VmSpec:
    made = tuple(
        Disk(
            id=f"disk{each}",
            volume=f"disk{each}",
            size=GIB + 512,
            bus=DiskBus.NVME if each == 1 else DiskBus.VIRTIO,
        )
        for each in range(disks)
    )
    nics = (
        Nic(id="nic0", mac="52:54:00:00:00:01", switch="lab & co"),
        Nic(id="nic1", mac="52:54:00:00:00:02"),
    )
    return VmSpec.model_validate({"cpus": 3, "memory": 768 * MIB, "disks": made, "nics": nics, **more})


def described(made: VmSpec, state: bool = True) -> ET.Element:
    disks = [
        ExportedDisk(disk.id, ExportedFile(f"x-{disk.id}.vmdk", 1000, "0" * 64), disk.size)
        for disk in made.disks
    ]
    kept = ExportedFile("x.hfstate", 10, "1" * 64) if state else None
    return ET.fromstring(descriptor(NAME, VM_ID, made, disks, DiskFormat.VMDK, kept))


SCHEMA = os.environ.get("HOLDFAST_OVF_SCHEMA", "")


@pytest.mark.skipif(not SCHEMA or not shutil.which("xmllint"), reason="no HOLDFAST_OVF_SCHEMA, or no xmllint")
@pytest.mark.parametrize("disks", [0, 2, 64])
def test_dmtfs_schema_holds(disks: int) -> None:
    for state in (False, True):
        for made in (spec(disks), spec(disks, nics=(), boot=KernelBoot(kernel="sha256:" + "0" * 64))):
            text = ET.tostring(described(made, state))
            argv = ["xmllint", "--nonet", "--noout", "--schema", SCHEMA, "-"]
            done = subprocess.run(argv, input=text, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
    damaged = text.replace(b"References", b"Refs")
    assert subprocess.run(argv, input=damaged, capture_output=True, check=False).returncode != 0


def items(root: ET.Element) -> list[dict[str, str]]:
    found = root.findall(f"{OVF}VirtualSystem/{OVF}VirtualHardwareSection/{OVF}Item")
    return [{child.tag.removeprefix(RASD): child.text or "" for child in item} for item in found]


def test_everything_is_there_in_the_schemas_order() -> None:
    root = described(spec())
    sections = [child.tag.removeprefix(OVF) for child in root]
    assert sections == ["References", "DiskSection", "NetworkSection", "VirtualSystem"]
    system = root.find(f"{OVF}VirtualSystem")
    assert system is not None
    assert [child.tag.removeprefix(OVF) for child in system] == [
        "Info",
        "Name",
        "OperatingSystemSection",
        "VirtualHardwareSection",
    ]
    assert system.get(f"{OVF}id") == NAME == system.findtext(f"{OVF}Name")
    files = {each.get(f"{OVF}id"): each.get(f"{OVF}href") for each in root.iter(f"{OVF}File")}
    assert files == {"file1": "x-disk0.vmdk", "file2": "x-disk1.vmdk", "file3": "x.hfstate"}
    assert [each.get(f"{OVF}fileRef") for each in root.iter(f"{OVF}Disk")] == ["file1", "file2"]
    assert {each.get(f"{OVF}capacity") for each in root.iter(f"{OVF}Disk")} == {str(GIB + 512)}
    assert {each.get(f"{OVF}name") for each in root.iter(f"{OVF}Network")} == {"lab & co", "user"}
    for item in items(root):
        assert list(item) == sorted(item)
    assert len({item["InstanceID"] for item in items(root)}) == len(items(root))


def test_hardware_says_what_the_vm_has() -> None:
    root = described(spec())
    by_type: dict[str, list[dict[str, str]]] = {}
    for item in items(root):
        by_type.setdefault(item["ResourceType"], []).append(item)
    assert by_type["3"][0]["VirtualQuantity"] == "3"
    assert by_type["4"][0]["VirtualQuantity"] == "768"
    controllers = {item["InstanceID"]: item for kind in ("6", "20") for item in by_type[kind]}
    assert [controllers[disk["Parent"]]["ResourceType"] for disk in by_type["17"]] == ["6", "20"]
    assert [nic["Address"] for nic in by_type["10"]] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert by_type["1"][0]["ResourceSubType"] == "vmware.vtpm"
    settings = [each for each in root.iter() if each.get(f"{VMW}key")]
    configured = {each.get(f"{VMW}key"): each.get(f"{VMW}value") for each in settings}
    assert configured == {
        "firmware": "efi",
        "bootOptions.efiSecureBootEnabled": "true",
        "uuid.bios": "56 4d 01 02 03 04 05 06-07 08 09 0a 0b 0c 0d 0e",
        STATE_KEY: "x.hfstate",
    }


def test_many_disks_take_more_controllers_and_leave_their_own_address() -> None:
    placed = [item for item in items(described(spec(64))) if item["ResourceType"] == "17"]
    places = {(item["Parent"], item["AddressOnParent"]) for item in placed}
    assert len(places) == 64
    scsi = [item["AddressOnParent"] for item in placed if item["ElementName"] != "disk1"]
    assert "7" not in scsi
    assert max(int(each) for each in scsi) == 15


def test_a_vm_without_firmware_disks_and_networks_is_described_too() -> None:
    made = spec(0, boot=KernelBoot(kernel="sha256:" + "0" * 64), nics=(), os=GuestOs.WINDOWS)
    root = described(made, state=False)
    assert root.find(f"{OVF}NetworkSection") is None
    assert [each.get(f"{VMW}key") for each in root.iter() if each.get(f"{VMW}key")] == ["uuid.bios"]
    unsafe = described(spec(1, boot=UefiBoot(secure_boot=False, tpm=False)), state=False)
    assert "false" in {each.get(f"{VMW}value") for each in unsafe.iter()}


def test_a_manifest_lists_each_file() -> None:
    assert manifest([ExportedFile("a.ovf", 1, "ab"), ExportedFile("b", 2, "cd")]) == (
        b"SHA256(a.ovf)= ab\nSHA256(b)= cd\n"
    )
