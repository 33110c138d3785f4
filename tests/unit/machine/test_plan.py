"""Golden files and laws of QEMU's arguments. HOLDFAST_GOLDEN=write writes the golden files anew."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from example_machines import machines, with_descriptors
from hypothesis import given
from hypothesis import strategies as st

from holdfast.machine.devices.disks import disks
from holdfast.machine.devices.memory import memory
from holdfast.machine.devices.ports import DISK_PORTS, NIC_PORTS, TooManyDevices
from holdfast.machine.plan import MachineInputs, PlainQemu, arguments
from holdfast.spec.attachment import CdAttachment, DiskAttachment, Layer, OnDiskError, SlirpAttachment
from holdfast.spec.units import GIB, MIB, TIB
from holdfast.spec.vm import Acceleration, DiskBus, GuestOs, Nic, VmSpec

GOLDEN = Path(__file__).parent / "golden"


TCG: dict[str, MachineInputs] = machines(Path("/vms/web"), Path("/run/web"))
KVM: dict[str, MachineInputs] = machines(Path("/vms/web"), Path("/run/web"), Acceleration.KVM)
CASES = {
    **TCG,
    **{f"{name}-kvm": KVM[name] for name in ("linux-trusted", "windows", "large")},
    "descriptors-kvm": with_descriptors(KVM["linux-trusted"]),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = "".join(f"{each}\n" for each in arguments(CASES[name], PlainQemu(io_uring=name.endswith("kvm"))))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("HOLDFAST_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_forgotten() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def _json(argv: tuple[str, ...], flag: str) -> list[dict[str, Any]]:
    pairs = itertools.pairwise(argv)
    return [json.loads(value) for name, value in pairs if name == flag]


_WORD = st.text(max_size=12)
_BUS = st.sampled_from(DiskBus)
_SPEC = st.builds(
    VmSpec,
    cpus=st.integers(1, 2048),
    memory=st.integers(16 * MIB, 240 * TIB),
    os=st.sampled_from(GuestOs),
    guest_agent=st.booleans(),
)


@st.composite
def _inputs(draw: st.DrawFn) -> MachineInputs:
    folder = Path("/vms") / draw(_WORD.filter(lambda word: "\0" not in word and not word.startswith("/")))
    ids = st.lists(st.from_regex(r"[a-z]{0,4}[0-9]{0,5}", fullmatch=True), unique=True, max_size=20)
    depth = st.integers(1, 4)
    disks = tuple(
        DiskAttachment(
            id=each,
            bus=draw(_BUS),
            layers=tuple(Layer.of_file(folder / str(n), "qcow2") for n in range(draw(depth))),
        )
        for each in draw(ids)
    )
    cds = tuple(CdAttachment(id=each, path=draw(st.sampled_from([None, folder]))) for each in draw(ids))
    cards = tuple(
        (Nic(id=each, mac="02:00:00:00:00:01"), SlirpAttachment(host_name="h")) for each in draw(ids)
    )
    return MachineInputs(
        vm_id="0d9a5b6e-7c41-4a52-9d6f-1f2e3d4c5b6a",
        name=draw(_WORD),
        spec=draw(_SPEC),
        acceleration=draw(st.sampled_from(Acceleration)),
        machine_type="pc-q35-10.0",
        runtime=folder,
        console_log=folder / "log",
        disks=disks,
        cds=cds,
        nics=cards,
    )


@given(_inputs())
def test_ids_and_addresses_are_unique_and_what_is_named_exists(inputs: MachineInputs) -> None:
    argv = arguments(inputs)
    devices, nodes = _json(argv, "-device"), _json(argv, "-blockdev")
    objects, networks = _json(argv, "-object"), _json(argv, "-netdev")
    names = {node["node-name"] for node in nodes}
    assert max(Counter(each["id"] for each in devices).values()) == 1
    assert len(names) == len(nodes)
    assert len({each["id"] for each in objects}) == len(objects)
    places = [(each["bus"], each["addr"]) for each in devices if "addr" in each]
    assert len(set(places)) == len(places)
    alone = [each["bus"] for each in devices if "-port" in each.get("bus", "")]
    assert len(set(alone)) == len(alone)
    ports = {each["id"] for each in devices if each["driver"] == "pcie-root-port"}
    assert set(alone) <= ports
    assert len(ports) <= NIC_PORTS.most + DISK_PORTS.most
    assert {each["drive"] for each in devices if "drive" in each} <= names
    assert {each["netdev"] for each in devices if "netdev" in each} == {each["id"] for each in networks}
    boots = [each["bootindex"] for each in devices if "bootindex" in each]
    assert len(set(boots)) == len(boots)
    assert argv == arguments(inputs)


@given(st.integers(16 * MIB, 240 * TIB), st.sampled_from(Acceleration))
def test_memory_is_whole_and_can_grow(size: int, acceleration: Acceleration) -> None:
    parts = memory(size, acceleration)
    pieces = [json.loads(each)["size"] for each in parts if each.startswith("{")]
    assert 0 <= sum(pieces) - size < MIB
    assert max(pieces) <= 4 * TIB
    declared = dict(each.split("=") for each in parts[1].split(","))
    assert int(declared["size"][:-1]) * MIB == sum(pieces)
    growing = sum(pieces) >= 512 * MIB and (acceleration is Acceleration.KVM or size < 512 * GIB - MIB)
    assert ("maxmem" in declared) == growing or size >= 512 * GIB - MIB
    if growing:
        assert int(declared["maxmem"][:-1]) * MIB > size


@given(st.lists(st.from_regex(r"[a-z]{0,3}[0-9]{0,5}", fullmatch=True), unique=True, max_size=72))
def test_every_device_has_a_port_of_its_own(ids: list[str]) -> None:
    places = NIC_PORTS.places(ids)
    assert set(places) == set(ids)
    assert len(set(places.values())) == len(ids)
    assert all(0 <= place < NIC_PORTS.most for place in places.values())


def test_a_card_keeps_its_place_when_another_is_removed() -> None:
    assert (
        NIC_PORTS.places(["nic0", "nic1", "nic2"])["nic2"] == NIC_PORTS.places(["nic0", "nic2"])["nic2"] == 2
    )


def test_more_disks_than_ports_are_refused() -> None:
    with pytest.raises(TooManyDevices):
        DISK_PORTS.places(f"disk{number}" for number in range(DISK_PORTS.most + 1))


def test_a_raw_file_has_nothing_below_it(tmp_path: Path) -> None:
    layers = tuple(Layer.of_file(tmp_path / name, "raw") for name in "ab")
    disk = DiskAttachment(id="disk0", bus=DiskBus.VIRTIO, layers=layers)
    spec = VmSpec(cpus=1, memory=16 * MIB)
    inputs = MachineInputs("v", "n", spec, Acceleration.TCG, "q35", tmp_path, tmp_path, disks=(disk,))
    with pytest.raises(ValueError, match="nothing below it"):
        arguments(inputs)


def test_disks_that_wait_have_no_io_thread(tmp_path: Path) -> None:
    """QEMU 10.0 was seen to lose interrupts after it had stopped for such a disk."""
    for bus in DiskBus:
        waiting = DiskAttachment(
            id="disk0",
            bus=bus,
            layers=(Layer.of_file(tmp_path / "a", "qcow2"),),
            on_error=OnDiskError.STOP,
        )
        found = [json.loads(each) for each in disks([waiting], io_uring=False) if each.startswith("{")]
        front = next(each for each in found if each.get("id") == "disk-disk0")
        assert ("werror" in front) is (bus is not DiskBus.NVME)
        assert not [each for each in found if "iothread" in each], bus
