"""The specification that a VM is made by from a point: another host's words, as far as they hold here."""

import json
from typing import Any

import pytest

from holdfast.replication.attachments import SentVm
from holdfast.replication.revived_spec import (
    Here,
    ReplicaSpecDamaged,
    RevivedNeedsAttestedHost,
    RevivedSpec,
    isolated_name,
    read_sent,
    revived,
)
from holdfast.spec.failover import FailoverNetwork
from holdfast.spec.ids import new_id
from holdfast.spec.names import check_name
from holdfast.spec.vm import CdDrive, Disk, IoLimits, Nic, UsbDevice, VmSpec

VM = new_id()
IMAGE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
HERE = Here(switches=frozenset({"Lan", "other"}), images=frozenset({IMAGE}), max_cpus=4)
SPEC = VmSpec(
    cpus=8,
    memory=1 << 28,
    disks=(
        Disk(id="disk0", volume="disk0-3", below=("disk0",), pool="fast", size=1, image=OTHER),
        Disk(id="disk1", volume="x", device="/dev/sda", size=1, limits=IoLimits(iops=5)),
        Disk(id="disk2", volume="disk2", size=1),
    ),
    cd_drives=(CdDrive(id="cd0", image=IMAGE), CdDrive(id="cd1", image=OTHER)),
    nics=(
        Nic(id="nic0", mac="02:00:00:00:00:01", switch="lan", vlan=7),
        Nic(id="nic2", mac="02:00:00:00:00:02", switch="elsewhere"),
        Nic(id="nic3", mac="02:00:00:00:00:03", cut=True),
    ),
    usb=(UsbDevice(id="usb0", host="1234:5678"),),
    template=True,
)


def made(
    spec: VmSpec = SPEC, *, isolated: bool = False, failover: FailoverNetwork | None = None
) -> RevivedSpec:
    sent = SentVm(id=VM, name="web", spec=spec, failover=failover or FailoverNetwork())
    sizes = {"disk0": 1 << 20, "disk1": 2 << 20}
    return revived(sent, sizes, ("web", "0a-1b"), HERE, isolated=isolated)


def test_disks_stand_on_the_point_and_name_nothing_of_the_source() -> None:
    disks = made().spec.disks
    assert [(disk.id, disk.volume, disk.below, disk.size) for disk in disks] == [
        ("disk0", "disk0", (), 1 << 20),
        ("disk1", "disk1", (), 2 << 20),
    ]
    assert all((disk.image, disk.device, disk.pool) == (None, None, None) for disk in disks)
    assert [(disk.origin.replica, disk.origin.disk) for disk in disks if disk.origin] == [
        ("web", "disk0"),
        ("web", "disk1"),
    ]
    assert disks[1].limits.iops == 5


def test_what_is_not_here_is_left_out_and_told() -> None:
    found = made()
    assert [(nic.id, nic.switch, nic.vlan, nic.unplugged) for nic in found.spec.nics] == [
        ("nic0", "Lan", 7, False),
        ("nic2", None, None, True),
        ("nic3", None, None, False),
    ]
    assert [drive.image for drive in found.spec.cd_drives] == [IMAGE, None]
    assert (found.spec.cpus, found.spec.usb, found.spec.template) == (4, (), False)
    assert sorted(each.id for each in found.findings) == [
        "replica-disc-missing",
        "replica-disk-not-held",
        "replica-fewer-cpus",
        "replica-nic-unplugged",
        "replica-usb-left-out",
    ]


def test_switches_are_called_as_on_this_host() -> None:
    found = made(failover=FailoverNetwork(switches={"elsewhere": "other"}))
    assert found.spec.nics[1].switch == "other"


def test_an_isolated_vm_is_in_no_network() -> None:
    found = made(isolated=True)
    assert all(nic.unplugged and nic.switch is None for nic in found.spec.nics)
    assert [nic.mac for nic in found.spec.nics] == [nic.mac for nic in SPEC.nics]


def test_a_vm_that_demands_an_attested_host_is_not_made() -> None:
    with pytest.raises(RevivedNeedsAttestedHost):
        made(SPEC.model_copy(update={"require_attested_host": True}))


def _changed(change: Any) -> bytes:
    wire = json.loads(SentVm(id=VM, name="web", spec=SPEC).model_dump_json())
    change(wire)
    return json.dumps(wire).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda wire: wire.update(id=new_id()),
        lambda wire: wire["spec"]["disks"][0].update(id="../x"),
        lambda wire: wire["spec"]["disks"][0].update(id="disk1"),
        lambda wire: wire["spec"]["nics"][0].update(id="nic0,x"),
        lambda wire: wire["spec"]["nics"][0].update(mac="02:00:00:00:00:0g"),
        lambda wire: wire["spec"]["cd_drives"][0].update(id="seed"),
        lambda wire: wire["spec"]["boot"].update(tpm_identity="x"),
        lambda wire: wire["spec"].update(cpus=0),
    ],
)
def test_what_is_no_specification_is_refused(change: Any) -> None:
    read_sent(_changed(lambda wire: None), VM)
    with pytest.raises(ReplicaSpecDamaged):
        read_sent(_changed(change), VM)
    with pytest.raises(ReplicaSpecDamaged):
        read_sent(None, VM)


def test_every_replicas_test_has_a_name_that_can_be() -> None:
    for name in ("web", "x" * 63, "y" * 56 + ".z"):
        assert check_name(isolated_name(name)).endswith(" - Test")
