"""How a VM is replicated back: as it was agreed on the host that it came from, as far as it fits."""

import pytest

from holdfast.replication.attachments import SentVm
from holdfast.replication.pace import BadLimit
from holdfast.replication.replica_records import HeldVm
from holdfast.replication.way_back import back, enabling, require_usable
from holdfast.spec.failover import FailoverNetwork, parse_failover_address
from holdfast.spec.replica import Priority, ReplicaEnable, ReplicaSettings
from holdfast.spec.vm import Disk, Nic, VmSpec

VM = "0190aaaa-0000-7000-8000-000000000001"
SPEC = VmSpec(
    cpus=1,
    memory=1 << 30,
    disks=(Disk(id="disk0", volume="disk0", size=1 << 20),),
    nics=(Nic(id="nic0", mac="52:54:00:00:00:01"),),
)
NIC0, NIC1 = (parse_failover_address(f"nic{number}=192.0.2.1{number}/24") for number in range(2))
ASKED = ReplicaEnable(
    peer="south",
    rpo_seconds=15.0,
    points="all:1h",
    priority=Priority.HIGH,
    limit="50Mbit/s",
    exclude=("disk0", "disk1"),
    failover=FailoverNetwork(switches={"LAN": "Office"}, addresses=(NIC0, NIC1)),
    schedule="22:00-06:00",
    initial="at 22:00",
    consistent_seconds=3600.0,
)
SENT = SentVm(id=VM, name="web", spec=SPEC, failover=ASKED.failover)


def held(agreed: ReplicaSettings | None) -> HeldVm:
    return HeldVm(name="web", vm=VM, source="", replication="", points="all:1h", agreed=agreed)


def test_all_that_was_agreed_holds_on_the_way_back() -> None:
    found = enabling(back(held(ASKED.agreed), SENT), "to north", SPEC)
    different = {"peer", "exclude", "failover", "initial"}
    assert found.model_dump(exclude=different) == ASKED.model_dump(exclude=different)
    assert (found.peer, found.initial) == ("to north", "now")
    assert found.exclude == ("disk0",)  # the other one is not replicated, and so not here
    assert found.failover == FailoverNetwork(switches={"Office": "LAN"}, home=(NIC0,), own=("nic0",))


def test_what_was_not_told_is_as_usual_but_for_what_was_kept() -> None:
    assert back(held(None), SENT).points == "all:1h"
    assert back(held(None), SENT).rpo_seconds == ReplicaSettings().rpo_seconds


def test_what_cannot_be_read_is_refused_beforehand() -> None:
    with pytest.raises(BadLimit):
        require_usable(ReplicaSettings(limit="much"))
