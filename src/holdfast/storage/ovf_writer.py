"""Describes an exported VM: an OVF descriptor and the manifest beside it (DMTF DSP0243 1.1.0). Pure.

Hardware is said in the words that vSphere, Workstation and VirtualBox know (DSP1044 to DSP1049 and CIM's
ResourceAllocationSettingData); firmware kind, Secure Boot and vTPM in vSphere's, marked as not required.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from holdfast.spec.units import MIB
from holdfast.spec.vm import DiskBus, GuestOs, UefiBoot, VmSpec
from holdfast.spec.vm_export import DiskFormat

STATE_KEY = "holdfast.firmwareState"
"""Of the extra configuration that names the file of firmware state."""

_FORMATS = {
    DiskFormat.VMDK: "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized",
    DiskFormat.QCOW2: "http://www.gnome.org/~markmc/qcow-image-format.html",
    DiskFormat.VHDX: "https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx",
    DiskFormat.RAW: "http://www.dmtf.org/ovf/raw",
}
_SYSTEMS = {
    # CIM_OperatingSystem.OsType, and vSphere's name of the guest.
    GuestOs.LINUX: (101, "other5xLinux64Guest", "Linux 64-bit"),
    GuestOs.WINDOWS: (115, "windows2019srv_64Guest", "Windows 64-bit"),
}
USER_NETWORK = "user"
"""What a descriptor calls the network of interfaces that are on no switch."""
# CIM_ResourceAllocationSettingData.ResourceType
_OTHER, _CPU, _MEMORY, _SCSI, _ETHERNET, _DISK, _STORAGE = 1, 3, 4, 6, 10, 17, 20
_ON_A_CONTROLLER = 15
_CONTROLLERS_OWN = 7
"""The SCSI address that is the controller's own."""


@dataclass(frozen=True)
class ExportedFile:
    name: str
    size: int
    """Bytes."""
    sha256: str
    """Hex."""


@dataclass(frozen=True)
class ExportedDisk:
    id: str
    file: ExportedFile
    capacity: int
    """Bytes that the guest sees."""


def manifest(files: Iterable[ExportedFile]) -> bytes:
    """The `.mf` file (DSP0243, 6.1)."""
    return "".join(f"SHA256({each.name})= {each.sha256}\n" for each in files).encode()


def descriptor(
    name: str,
    vm_id: str,
    spec: VmSpec,
    disks: Sequence[ExportedDisk],
    format: DiskFormat,
    state: ExportedFile | None,
) -> bytes:
    """The `.ovf` file of a VM, UTF-8; `vm_id` is its UUID."""
    files = [each.file for each in disks] + ([state] if state else [])
    networks = sorted({_network(nic.switch) for nic in spec.nics})
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"'
        ' xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
        ' xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"'
        ' xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"'
        ' xmlns:vmw="http://www.vmware.com/schema/ovf">',
        "  <References>",
        *(
            f'    <File ovf:href="{escape(each.name)}" ovf:id="file{number}" ovf:size="{each.size}"/>'
            for number, each in enumerate(files, 1)
        ),
        "  </References>",
        "  <DiskSection>",
        "    <Info>Virtual disks</Info>",
        *(
            f'    <Disk ovf:capacity="{each.capacity}" ovf:capacityAllocationUnits="byte"'
            f' ovf:diskId="{escape(each.id)}" ovf:fileRef="file{number}" ovf:format="{_FORMATS[format]}"/>'
            for number, each in enumerate(disks, 1)
        ),
        "  </DiskSection>",
        *_network_section(networks),
        f'  <VirtualSystem ovf:id="{escape(name)}">',
        "    <Info>A virtual machine</Info>",
        f"    <Name>{escape(name)}</Name>",
        *_operating_system(spec),
        *_hardware(name, vm_id, spec, disks, state),
        "  </VirtualSystem>",
        "</Envelope>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _network(switch: str | None) -> str:
    return switch or USER_NETWORK


def _network_section(networks: Sequence[str]) -> list[str]:
    if not networks:
        return []
    lines = ["  <NetworkSection>", "    <Info>Logical networks</Info>"]
    lines += [
        f'    <Network ovf:name="{escape(each)}"><Description>A switch</Description></Network>'
        for each in networks
    ]
    return [*lines, "  </NetworkSection>"]


def _operating_system(spec: VmSpec) -> list[str]:
    number, vmware, words = _SYSTEMS[spec.os]
    return [
        f'    <OperatingSystemSection ovf:id="{number}" vmw:osType="{vmware}">',
        "      <Info>The guest operating system</Info>",
        f"      <Description>{words}</Description>",
        "    </OperatingSystemSection>",
    ]


def _hardware(
    name: str, vm_id: str, spec: VmSpec, disks: Sequence[ExportedDisk], state: ExportedFile | None
) -> list[str]:
    lines = [
        "    <VirtualHardwareSection>",
        "      <Info>Virtual hardware</Info>",
        "      <System>",
        "        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>",
        "        <vssd:InstanceID>0</vssd:InstanceID>",
        f"        <vssd:VirtualSystemIdentifier>{escape(name)}</vssd:VirtualSystemIdentifier>",
        "        <vssd:VirtualSystemType>vmx-14</vssd:VirtualSystemType>",
        "      </System>",
    ]
    for number, item in enumerate(_items(spec, disks), 1):
        lines += _item(number, item)
    if isinstance(spec.boot, UefiBoot):
        lines.append(_config("firmware", "efi"))
        secure = "true" if spec.boot.secure_boot else "false"
        lines.append(_config("bootOptions.efiSecureBootEnabled", secure))
    pairs = bytes.fromhex(vm_id.replace("-", ""))
    lines.append(_config("uuid.bios", f"{pairs[:8].hex(' ')}-{pairs[8:].hex(' ')}", "ExtraConfig"))
    if state:
        lines.append(_config(STATE_KEY, state.name, "ExtraConfig"))
    return [*lines, "    </VirtualHardwareSection>"]


def _config(key: str, value: str, element: str = "Config") -> str:
    return f'      <vmw:{element} ovf:required="false" vmw:key="{key}" vmw:value="{escape(value)}"/>'


def _items(spec: VmSpec, disks: Sequence[ExportedDisk]) -> list[dict[str, str | int]]:
    """Each piece of hardware by the names of its properties. A piece's number is its place, from 1."""
    items: list[dict[str, str | int]] = [
        {
            "AllocationUnits": "hertz * 10^6",
            "ElementName": f"{spec.cpus} virtual CPUs",
            "ResourceType": _CPU,
            "VirtualQuantity": spec.cpus,
        },
        {
            "AllocationUnits": "byte * 2^20",
            "ElementName": f"{spec.memory // MIB} MiB of memory",
            "ResourceType": _MEMORY,
            "VirtualQuantity": spec.memory // MIB,
        },
    ]
    buses = {disk.id: disk.bus for disk in spec.disks}
    for nvme in (False, True):
        group = [disk for disk in disks if (buses[disk.id] is DiskBus.NVME) is nvme]
        for start in range(0, len(group), _ON_A_CONTROLLER):
            items.append(_controller(start // _ON_A_CONTROLLER, nvme))
            parent = len(items)
            for place, disk in enumerate(group[start : start + _ON_A_CONTROLLER]):
                items.append(_disk(disk, parent, place + (not nvme and place >= _CONTROLLERS_OWN)))
    for nic in spec.nics:
        items.append(
            {
                "Address": nic.mac,
                "AutomaticAllocation": "true",
                "Connection": _network(nic.switch),
                "ElementName": nic.id,
                "ResourceSubType": "VmxNet3",
                "ResourceType": _ETHERNET,
            }
        )
    if isinstance(spec.boot, UefiBoot) and spec.boot.tpm:
        items.append(
            {
                "AutomaticAllocation": "false",
                "ElementName": "Virtual TPM",
                "ResourceSubType": "vmware.vtpm",
                "ResourceType": _OTHER,
            }
        )
    return items


def _controller(number: int, nvme: bool) -> dict[str, str | int]:
    return {
        "Address": number,
        "ElementName": f"{'NVMe' if nvme else 'SCSI'} controller {number}",
        "ResourceSubType": "vmware.nvme.controller" if nvme else "VirtualSCSI",
        "ResourceType": _STORAGE if nvme else _SCSI,
    }


def _disk(disk: ExportedDisk, parent: int, place: int) -> dict[str, str | int]:
    return {
        "AddressOnParent": place,
        "ElementName": disk.id,
        "HostResource": f"ovf:/disk/{disk.id}",
        "Parent": parent,
        "ResourceType": _DISK,
    }


def _item(number: int, properties: dict[str, str | int]) -> list[str]:
    """The schema wants the properties in the order of their names."""
    optional = ' ovf:required="false"' if properties["ResourceType"] == _OTHER else ""
    everything = sorted({**properties, "InstanceID": number}.items())
    inner = [f"        <rasd:{key}>{escape(str(value))}</rasd:{key}>" for key, value in everything]
    return [f"      <Item{optional}>", *inner, "      </Item>"]
