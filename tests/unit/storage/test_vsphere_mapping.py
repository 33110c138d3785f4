"""What settings in vSphere become, as golden files (HOLDFAST_GOLDEN=write writes them anew)."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast.spec.appliance import Severity
from holdfast.storage.vsphere.mapping import Described, to_appliance

sys.path.append(str(Path(__file__).parents[2] / "guests"))

from vsphere_vms import flat, nic, usual_config, virtual_disk

GOLDEN = Path(__file__).parent / "vsphere_golden"
GIB = 1 << 30
DISK = vim.vm.device.VirtualDisk


def described(*devices: Any, firmware: str = "efi", **more: Any) -> Described:
    config = usual_config("web", firmware)
    config.hardware.device += list(devices)
    config.changeTrackingEnabled = True
    return Described(config=config, **{"running": False, "tools": True, **more})


def portgroup_nic() -> Any:
    card = nic(4001, "", "00:50:56:be:ef:02")
    port = vim.dvs.PortConnection(switchUuid="50 1a", portgroupKey="dvportgroup-21")
    card.backing = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
    return card


def plain() -> Described:
    return described(
        virtual_disk(2001, 1000, 1, 2 * GIB, flat("[ds] web/web_1.vmdk", changeId="x/2")),
        virtual_disk(2000, 1000, 0, GIB, flat("[ds] web/web.vmdk", changeId="x/1")),
        portgroup_nic(),
        networks={"dvportgroup-21": "Servers"},
        vlans={"dvportgroup-21": 40},
        committed={2000: GIB // 2, 2001: 5 * GIB},
    )


def old() -> Described:
    """BIOS, IDE and NVMe, snapshots, changes not tracked, running."""
    vm = described(
        vim.vm.device.VirtualIDEController(key=200, busNumber=0),
        vim.vm.device.VirtualNVMEController(key=31000, busNumber=0),
        virtual_disk(3000, 200, 0, GIB, flat("[ds] old/old-000001.vmdk", parent=flat("[ds] old/old.vmdk"))),
        virtual_disk(3001, 31000, 0, GIB, flat("[ds] old/data.vmdk")),
        vim.vm.device.VirtualUSBController(key=7000),
        vim.vm.device.VirtualFloppy(key=8000),
        firmware="bios",
        snapshots=True,
        running=True,
    )
    vm.config.changeTrackingEnabled = False
    vm.config.guestId, vm.config.guestFullName = "windows9Server64Guest", "Microsoft Windows Server 2016"
    return vm


def strange() -> Described:
    """What cannot be brought over, and names and amounts that nobody should believe."""
    rdm = DISK.RawDiskMappingVer1BackingInfo(
        fileName="[ds] s/rdm.vmdk", compatibilityMode="physicalMode", diskMode="independent_persistent"
    )
    locked = flat("[ds] s/locked.vmdk", keyId=vim.encryption.CryptoKeyId(keyId="k"))
    shared = flat("[ds] s/shared.vmdk", sharing="sharingMultiWriter")
    vm = described(
        virtual_disk(2000, 1000, 0, 1 << 62, rdm),
        virtual_disk(2001, 1000, 1, GIB, locked),
        virtual_disk(2002, 9, 2, GIB, shared),
        vim.vm.device.VirtualPCIPassthrough(key=13000),
        portgroup_nic(),
        tools=False,
        running=True,
    )
    vm.config.name = "a\x1b[31m" + "b" * 400
    vm.config.uuid = "../../etc/passwd"
    vm.config.hardware.device[2].macAddress = "ff:ff:ff:ff:ff:ff"
    return vm


CASES = {"plain": (plain, False), "old": (old, False), "old-warm": (old, True), "strange": (strange, True)}


@pytest.mark.parametrize("name", CASES)
def test_settings_become_an_appliance(name: str) -> None:
    make, warm = CASES[name]
    found = json.loads(to_appliance(make(), warm).model_dump_json(exclude_defaults=True))
    path = GOLDEN / f"{name}.json"
    if os.environ.get("HOLDFAST_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(path.read_text())


def test_only_what_a_warm_import_needs_stands_in_its_way() -> None:
    def errors(vm: Described, warm: bool) -> set[str]:
        found = to_appliance(vm, warm).findings
        return {each.id for each in found if each.severity is Severity.ERROR}

    running = replace(plain(), running=True)
    assert errors(plain(), False) == errors(plain(), True) == errors(running, True) == set()
    assert errors(running, False) == {"vsphere-vm-on"}
    assert errors(replace(running, tools=False), True) == {"tools-not-running"}
