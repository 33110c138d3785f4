"""Example machines: values alone, so that the golden files and real QEMU judge the same ones."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from holdfast.machine.plan import MachineInputs
from holdfast.spec.attachment import (
    CdAttachment,
    DiskAttachment,
    FirmwareAttachment,
    Layer,
    NicAttachment,
    SlirpAttachment,
    TapAttachment,
    TpmAttachment,
    UnpluggedAttachment,
    WindowPlace,
)
from holdfast.spec.vm import Acceleration, DiskBus, GuestOs, KernelBoot, Layout, Nic, VmSpec

MACHINE_TYPE = "pc-q35-10.0"
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
_ID = "0d9a5b6e-7c41-4a52-9d6f-1f2e3d4c5b6a"


def _layers(folder: Path, *names: str) -> tuple[Layer, ...]:
    return tuple(Layer.of_file(folder / f"{name}.qcow2", "qcow2") for name in names)


def _disk(folder: Path, number: int, bus: DiskBus, *below: str, discard: bool = True) -> DiskAttachment:
    name = f"disk{number}"
    return DiskAttachment(id=name, bus=bus, layers=_layers(folder, name, *below), discard=discard)


def _over_a_point(folder: Path) -> dict[str, object]:
    """Disks as `replication.origins` gives them, windows of one file over raw ones; cards in no network."""

    def disk(number: int) -> DiskAttachment:
        name = f"disk{number}"
        window = WindowPlace(path=folder / "journal", offset=(1 + number) << 20)
        layers = (
            *_layers(folder, name),
            Layer(place=window, format="qcow2", name=f"{name}.point0"),
            Layer.of_file(folder / f"{name}.base", "raw", f"{name}.base"),
        )
        return DiskAttachment(id=name, bus=DiskBus.VIRTIO, layers=layers)

    cards = tuple(_card(number, UnpluggedAttachment(hub=number)) for number in (0, 2))
    return {"disks": (disk(0), disk(1)), "nics": cards}


def _card(number: int, attachment: NicAttachment) -> tuple[Nic, NicAttachment]:
    return Nic(id=f"nic{number}", mac=f"02:00:00:00:00:{number:02x}"), attachment


def _made(
    folder: Path, runtime: Path, acceleration: Acceleration, spec: VmSpec, **more: object
) -> MachineInputs:
    fixed = {
        "vm_id": _ID,
        "name": "web",
        "acceleration": acceleration,
        "machine_type": MACHINE_TYPE,
        "runtime": runtime,
        "console_log": folder / "console.log",
    }
    return MachineInputs(**(fixed | {"spec": spec} | more))  # type: ignore[arg-type]


def machines(
    folder: Path, runtime: Path, acceleration: Acceleration = Acceleration.TCG
) -> dict[str, MachineInputs]:
    """By name. Disks, discs, kernel and variables are files in `folder`; sockets are in `runtime`."""

    made = partial(_made, folder, runtime, acceleration)
    trusted = {
        "firmware": FirmwareAttachment(code=OVMF, variables=folder / "variables.fd", smm=True),
        "tpm": TpmAttachment(socket=runtime / "swtpm.sock"),
    }
    slirp = SlirpAttachment(host_name="web", forwards=((0, 22),))
    disc = folder / "disc.iso"
    kernel_boot = VmSpec(
        cpus=1, memory=96 << 20, boot=KernelBoot(kernel="k", append='console=ttyS0 a="b, c"')
    )
    buses = (DiskBus.VIRTIO, DiskBus.SCSI, DiskBus.NVME, DiskBus.SCSI)
    hostile = ',"x={}'
    return {
        "linux-trusted": made(
            VmSpec(cpus=2, memory=1 << 30),
            disks=(_disk(folder, 0, DiskBus.VIRTIO, "middle", "image"),),
            cds=(CdAttachment(id="seed", path=disc),),
            nics=(_card(0, slirp),),
            **trusted,
        ),
        "windows": made(
            VmSpec(cpus=4, memory=4 << 30, os=GuestOs.WINDOWS),
            disks=(_disk(folder, 0, DiskBus.NVME),),
            cds=(CdAttachment(id="cd0", path=disc), CdAttachment(id="cd1", path=None)),
            nics=(_card(0, slirp),),
            **trusted,
        ),
        "many-nics": made(
            VmSpec(cpus=1, memory=256 << 20, guest_agent=False),
            nics=tuple(_card(number, SlirpAttachment(host_name=f"h{number}")) for number in range(64)),
        ),
        "all-buses": made(
            VmSpec(cpus=1, memory=256 << 20),
            disks=tuple(_disk(folder, n, bus, discard=bool(n % 2)) for n, bus in enumerate(buses)),
            cds=tuple(CdAttachment(id=f"cd{number}", path=None) for number in range(2)),
            incoming=True,
        ),
        "kernel": made(kernel_boot, kernel=folder / "vmlinuz", initrd=folder / "initrd"),
        "hostile-names": made(
            VmSpec(cpus=1, memory=16 << 20),
            name=f"{hostile} ,id=y",
            disks=(_disk(folder, 0, DiskBus.VIRTIO, f"image{hostile}"),),
            cds=(CdAttachment(id="cd0", path=folder / f"disc{hostile}.iso"),),
            nics=(_card(0, SlirpAttachment(host_name=hostile)),),
            console_log=folder / f"console{hostile}.log",
        ),
        "grown": made(
            VmSpec(cpus=3, memory=1 << 30, layout=Layout(nic_ports=8, disk_ports=16, max_cpus=8)),
            nics=tuple(_card(number, SlirpAttachment(host_name="web")) for number in range(8)),
        ),
        "over-a-point": made(VmSpec(cpus=1, memory=256 << 20), **_over_a_point(folder)),
        "large": made(VmSpec(cpus=288, memory=16 << 30)),
    }


def with_descriptors(inputs: MachineInputs) -> MachineInputs:
    """The same with network backends that only a prepared host has."""
    tap = TapAttachment(fd=30, vhost_fd=31, interface="hf0")
    plain = TapAttachment(fd=32, interface="hf1")
    slirp = SlirpAttachment(host_name="web")
    return replace(inputs, nics=(_card(0, tap), _card(3, plain), _card(1, slirp)), monitor_fd=29)
