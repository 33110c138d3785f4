"""Plans of descriptions in every dialect, as golden files (HOLDFAST_GOLDEN=write writes them anew)."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from held_files import held

from holdfast.cli.sheets.appliance import plan_sheet
from holdfast.spec.appliance import Appliance, Finding, ImportFile, ImportPlan, Severity, VmImport
from holdfast.spec.units import GIB, MIB, TIB
from holdfast.storage.appliances.boot_look import BootLook
from holdfast.storage.appliances.driver_look import DriverLook, Drivers
from holdfast.storage.appliances.source import HeldFile, Source, read_source
from holdfast.vm.import_plan import DiskFacts, HostFacts, SourceFacts, StateFacts, plan_import, usable_name
from holdfast.vm.import_room import PoolFacts

HERE = Path(__file__).parent
CORPUS, GOLDEN = HERE / "appliances", HERE / "golden"

HOST = HostFacts(
    switches=("lan", "Office"),
    max_cpus=64,
    memory=256 * GIB,
    space_free=2 * TIB,
    macs={},
    names=frozenset({"taken"}),
    ids=frozenset(),
)
UEFI = BootLook(partitioned=True, system_partition=True, fallback=True)
NO_LOADER = BootLook(partitioned=True, system_partition=False, fallback=False)
VENDOR = BootLook(partitioned=True, system_partition=True, fallback=False, vendor="EFI\\debian\\shimx64.efi")
WINDOWS = BootLook(
    partitioned=True, system_partition=True, fallback=True, vendor="EFI\\Microsoft\\Boot\\bootmgfw.efi"
)
REQUEST = VmImport(files=(ImportFile(name="x", upload="x"),))

CASES: dict[str, tuple[BootLook | None, VmImport]] = {
    "vsphere-uefi.ovf": (UEFI, REQUEST.model_copy(update={"switches": {"VM Network": "lan"}})),
    "vsphere-bios.ovf": (NO_LOADER, REQUEST),
    "virtualbox-bios.ovf": (UEFI, REQUEST.model_copy(update={"name": "taken"})),
    "virtualbox-efi.ovf": (VENDOR, REQUEST),
    "workstation.ovf": (UEFI, REQUEST.model_copy(update={"switches": {"*": "lan", "nat": "absent"}})),
    "ovftool-six-disks.ovf": (None, REQUEST),
    "xencenter.ovf": (UEFI, REQUEST.model_copy(update={"secure_boot": True, "tpm": True})),
    "vsphere-8-nvme.ovf": (UEFI, REQUEST.model_copy(update={"switches": {"DPG-Prod": "Office"}})),
    "virtualbox-7-windows.ovf": (WINDOWS, REQUEST.model_copy(update={"accept_eulas": True})),
    "ovftool-vapp.ovf": (UEFI, REQUEST),
    "xen-orchestra.ovf": (UEFI, REQUEST),
    "ovf-2.ovf": (None, REQUEST),
    "network-appliance.ovf": (NO_LOADER, REQUEST),
    "libvirt-uefi.xml": (UEFI, REQUEST),
    "proxmox-ovmf.conf": (UEFI, REQUEST.model_copy(update={"switches": {"vmbr0": "lan"}})),
    "hyperv-2012r2.xml": (UEFI, REQUEST),
}


def read(name: str) -> Source:
    """With every file that it names beside it, and nothing in those."""
    described = held(name, (CORPUS / name).read_bytes())
    appliance = read_source([described]).appliance
    sizes = {disk.file: disk.file_size or 1 for disk in appliance.disks}
    files = [
        HeldFile(each.replace("%20", " "), described.fd, 0, sizes.get(each, 1)) for each in appliance.files
    ]
    return read_source([described, *files])


def planned(name: str, look: BootLook | None, request: VmImport, host: HostFacts = HOST) -> ImportPlan:
    source = read(name)
    return plan_import(source.appliance, facts_of(source, look), host, request)


def facts_of(source: Source, look: BootLook | None) -> SourceFacts:
    disks = {
        disk.id: DiskFacts(
            file_size=GIB, format="" if disk.gzip else "vmdk", size=disk.capacity or 32 * GIB, boot=look
        )
        for disk in source.appliance.disks
        if disk.id in source.disks
    }
    return SourceFacts(disks, source.findings)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = json.dumps(planned(name, *CASES[name]).model_dump(mode="json"), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("HOLDFAST_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_no_description_and_no_golden_file_is_forgotten() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(CASES)
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)


def ids(plan: ImportPlan, severity: Severity = Severity.ERROR) -> set[str]:
    return {each.id for each in plan.findings if each.severity is severity}


def test_what_stands_in_the_way_is_said_all_at_once() -> None:
    poor = replace(HOST, max_cpus=1, memory=GIB, space_free=GIB)
    plan = planned("vsphere-bios.ovf", NO_LOADER, REQUEST.model_copy(update={"name": "Taken"}), poor)
    assert ids(plan) == {"bios-only", "name-taken", "no-space", "not-enough-memory", "too-many-cpus"}
    assert not plan.importable


def test_a_bios_machine_with_a_uefi_loader_is_brought_over_and_that_is_said() -> None:
    plan = planned("virtualbox-bios.ovf", UEFI, REQUEST)
    assert plan.importable and "bios-to-uefi" in ids(plan, Severity.WARNING)


def test_an_address_in_use_is_not_kept() -> None:
    host = replace(HOST, macs={"00:50:56:8e:1a:2b": "other"}, ids=frozenset())
    plan = planned("vsphere-uefi.ovf", UEFI, REQUEST, host)
    assert plan.nics[0].mac is None and not plan.nics[0].mac_kept
    assert "mac-not-kept" in ids(plan, Severity.WARNING)


def test_a_password_of_an_appliance_is_in_no_plan() -> None:
    assert "secret-do-not-show" not in planned("network-appliance.ovf", UEFI, REQUEST).model_dump_json()


def test_the_file_is_believed_where_the_description_has_another_size() -> None:
    source = read("vsphere-uefi.ovf")
    facts = SourceFacts({"vmdisk1": DiskFacts(GIB, "vmdk", 41 * GIB, UEFI)})
    plan = plan_import(source.appliance, facts, HOST, REQUEST)
    assert plan.disks[0].size == 41 * GIB
    assert "disk-size-differs" in ids(plan, Severity.WARNING)


def test_a_machine_without_disks_cannot_be_imported() -> None:
    bare = Appliance.model_validate({"kind": "ovf", "name": "bare", "firmware": "uefi"})
    assert ids(plan_import(bare, SourceFacts({}), HOST, REQUEST)) == {"no-disks"}


STATE = StateFacts("web.hfstate", wanted=True, identity="a" * 36)
DAMAGED = Finding(id="firmware-state-damaged", severity=Severity.ERROR, text="x")
NO_TPM = REQUEST.model_copy(update={"tpm": False})


@pytest.mark.parametrize(
    ("state", "request_", "found", "tpm"),
    [
        (replace(STATE, wanted=False), REQUEST, "firmware-state-not-taken", True),
        (replace(STATE, wanted=False, problem=DAMAGED), REQUEST, "firmware-state-not-taken", True),
        (STATE, REQUEST, "firmware-state-taken", True),
        (replace(STATE, identity=None), REQUEST, "firmware-state-taken", False),
        (replace(STATE, problem=DAMAGED), REQUEST, "firmware-state-damaged", True),
        (StateFacts("", wanted=True), REQUEST, "no-firmware-state", True),
        (STATE, NO_TPM, "firmware-state-unlike", True),
        (replace(STATE, identity="b" * 36), REQUEST, "firmware-state-of-another-vm", True),
        (replace(STATE, identity="b" * 36, same_tpm=True), REQUEST, "firmware-state-taken", True),
    ],
)
def test_firmware_state_that_came_along_is_taken_or_said_to_stay(
    state: StateFacts, request_: VmImport, found: str, tpm: bool
) -> None:
    source = read("vsphere-uefi.ovf")
    facts = replace(facts_of(source, UEFI), state=state)
    plan = plan_import(source.appliance, facts, replace(HOST, tpms={"b" * 36: "here"}), request_)
    named = {each.id for each in plan.findings}
    assert found in named and plan.tpm is tpm
    assert ("tpm-new" in named) is (not state.wanted or not state.file)
    assert plan.importable is (found in ("firmware-state-taken", "firmware-state-not-taken"))


POOLS = {
    "fast": PoolFacts("Fast", 4 * TIB),
    "full": PoolFacts("full", GIB),
    "gone": PoolFacts("gone", None, "it is not mounted"),
    "mute": PoolFacts("mute", None),
}


@pytest.mark.parametrize(
    ("pools", "errors"),
    [
        ({}, set()),
        ({"*": "fast"}, set()),
        ({"*": "mute"}, set()),
        ({"*": "FULL"}, {"no-space"}),
        ({"*": "gone"}, {"pool-vanished"}),
        ({"*": "none"}, {"pool-not-found"}),
        ({"disk7": "fast"}, {"disk-not-in-source"}),
        ({"disk0": "fast", "disk3": "none"}, {"pool-not-found"}),
    ],
)
def test_pools_are_there_and_have_room(pools: dict[str, str], errors: set[str]) -> None:
    source = read("ovftool-six-disks.ovf")
    host = replace(HOST, pools=POOLS)
    plan = plan_import(
        source.appliance, facts_of(source, UEFI), host, REQUEST.model_copy(update={"pools": pools})
    )
    assert ids(plan) == errors
    assert plan.space_needed == sum(each.needed for each in plan.space)


def test_each_disk_goes_where_it_is_told_and_room_is_told_by_pool() -> None:
    source = read("ovftool-six-disks.ovf")
    host = replace(HOST, pools=POOLS)
    named = source.appliance.disks[2].id
    pools = {"disk1": "fast", named: "mute"}
    plan = plan_import(
        source.appliance, facts_of(source, UEFI), host, REQUEST.model_copy(update={"pools": pools})
    )
    assert [disk.pool for disk in plan.disks] == [None, "Fast", "mute", None, None, None]
    assert {each.pool: each.free for each in plan.space} == {
        "local": HOST.space_free,
        "Fast": 4 * TIB,
        "mute": None,
    }
    assert "Fast" in plan_sheet(plan.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("file server (old)", "file server -old"),
        ("../../etc/passwd", "etc-passwd"),
        ("日本", "imported"),
        ("", "imported"),
        ("a" * 200, "a" * 63),
        ("web..01", "web.01"),
    ],
)
def test_a_name_that_cannot_be_is_made_one_that_can(wanted: str, name: str) -> None:
    assert usable_name(wanted) == name


def test_an_interface_on_no_switch_comes_back_without_a_warning() -> None:
    source = read("vsphere-uefi.ovf")
    nics = tuple(nic.model_copy(update={"network": "user"}) for nic in source.appliance.nics)
    appliance = source.appliance.model_copy(update={"nics": nics})
    plan = plan_import(appliance, facts_of(source, UEFI), HOST, REQUEST)
    assert "network-not-mapped" not in ids(plan, Severity.WARNING)
    assert [nic.switch for nic in plan.nics] == [None] * len(nics)


@pytest.mark.parametrize(
    ("file_size", "data", "found"),
    [
        (GIB, 200 * GIB, set[str]()),
        (GIB, 202 * GIB, {"disk-expands-absurdly"}),
        (20 * GIB, 2 * TIB, {"no-space"}),
    ],
)
def test_what_the_tables_list_is_the_room_that_is_needed(file_size: int, data: int, found: set[str]) -> None:
    source = read("vsphere-uefi.ovf")
    facts = SourceFacts({"vmdisk1": DiskFacts(file_size, "qcow2", 2 * TIB, UEFI, data=data)})
    plan = plan_import(source.appliance, facts, HOST, REQUEST)
    assert ids(plan) == found and data < plan.space_needed < data + GIB


@pytest.mark.parametrize(
    ("file_size", "size", "found"),
    [
        (MIB, 60 * TIB, {"disk-expands-absurdly"}),
        (GIB, GIB * 1001, set[str]()),  # 1,000:1 that could be held is not harmful
        (3 * GIB, 2 * TIB + GIB, set()),  # nor is a thin disk
        (2 * GIB, 3 * TIB, {"disk-expands-absurdly"}),
    ],
)
def test_a_disk_that_says_it_is_vast_is_not_taken(file_size: int, size: int, found: set[str]) -> None:
    source = read("vsphere-uefi.ovf")
    facts = SourceFacts({"vmdisk1": DiskFacts(file_size, "vmdk", size, UEFI)})
    plan = plan_import(source.appliance, facts, HOST, REQUEST)
    assert ids(plan) == found
    assert ("space-overcommitted" in ids(plan, Severity.WARNING)) is (size > HOST.space_free)


@pytest.mark.parametrize(
    ("drivers", "severity"),
    [
        (Drivers.PRESENT, Severity.INFO),
        (Drivers.MISSING, Severity.WARNING),
        (Drivers.UNKNOWN, Severity.INFO),
    ],
)
def test_whether_the_guest_will_find_its_disks_is_said(drivers: Drivers, severity: Severity) -> None:
    look = replace(UEFI, drivers=DriverLook(drivers, "what was seen"))
    for name in ("vsphere-uefi.ovf", "ovftool-six-disks.ovf"):
        plan = planned(name, look, REQUEST)
        (found,) = [each for each in plan.findings if each.id.startswith("virtio-drivers-")]
        assert (found.id, found.severity) == (f"virtio-drivers-{drivers}", severity)
        assert "what was seen" in found.text
        assert ("move-disk" in found.text) is (drivers is Drivers.MISSING)


def test_disks_of_windows_need_no_virtio_drivers() -> None:
    plan = planned("virtualbox-7-windows.ovf", WINDOWS, REQUEST)
    (found,) = [each for each in plan.findings if each.id.startswith("virtio-drivers-")]
    assert found.id == "virtio-drivers-unknown" and "do not need" in found.text
