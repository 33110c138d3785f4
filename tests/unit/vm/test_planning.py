"""From a request to a plan: what the planner chooses by itself, and what it refuses."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.spec.pool import LOCAL
from holdfast.spec.units import GIB
from holdfast.spec.vm import CdDrive, GuestOs, VmSpec, VmState, VolumeFormat
from holdfast.spec.vm_requests import NewDisk, NewNic, VmChange, VmCreate
from holdfast.storage.images import ImageNotFound
from holdfast.vm import planning
from holdfast.vm.planning import MacTaken, NoCdDrive, Planner, WrongImageKind
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms
from holdfast.vm.view import show

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def image(name: str, kind: ImageKind) -> Image:
    return Image(
        digest=f"sha256:{name}",
        names=(name,),
        kind=kind,
        origin=ImageOrigin.IMPORTED,
        source="",
        virtual_size=GIB,
        stored_size=GIB,
        created=NOW,
    )


class Images:
    def __init__(self, **kinds: ImageKind) -> None:
        self.known = {name.replace("_", "-"): kind for name, kind in kinds.items()}

    async def get(self, name: str) -> Image:
        if name not in self.known:
            raise ImageNotFound(f"{name!r} is not there")
        return image(name, self.known[name])


class Records:
    def __init__(self, *records: Any) -> None:
        self.records = records

    async def all(self) -> tuple[Any, ...]:
        return self.records


@pytest.fixture(autouse=True)
def _firmware_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "choose_firmware", lambda secure_boot: None)


async def _nothing(*_: Any) -> None:
    pass


def planner(folder: Path, images: Images, *records: Any) -> Planner:
    rooms = SimpleNamespace(
        state=SimpleNamespace(vms=folder, vm=lambda name: folder / name),
        images=images,
        records=Records(*records),
        machines=SimpleNamespace(max_cpus=8),
        volumes=SimpleNamespace(require_free=_nothing),
        pools=SimpleNamespace(of=lambda _: SimpleNamespace(name=LOCAL, format=VolumeFormat.QCOW2)),
    )
    return Planner(cast(Rooms, rooms))


def windows(**more: Any) -> VmCreate:
    return VmCreate(name="w", os=GuestOs.WINDOWS, disks=(NewDisk(size=GIB),), **more)


async def test_windows_gets_its_drivers_beside_the_installer(tmp_path: Path) -> None:
    images = Images(setup=ImageKind.ISO, virtio_win=ImageKind.ISO)
    spec = (await planner(tmp_path, images).plan(windows(iso="setup"))).spec
    assert spec.cd_drives == (
        CdDrive(id="cd0", image="sha256:setup"),
        CdDrive(id="cd1", image="sha256:virtio-win"),
    )


async def test_without_an_installer_the_drivers_stay_in_the_second_drive(tmp_path: Path) -> None:
    spec = (await planner(tmp_path, Images(virtio_win=ImageKind.ISO)).plan(windows())).spec
    assert spec.cd_drives == (CdDrive(id="cd0"), CdDrive(id="cd1", image="sha256:virtio-win"))


@pytest.mark.parametrize("images", [Images(), Images(virtio_win=ImageKind.DISK)])
async def test_windows_without_a_driver_disc_says_so(tmp_path: Path, images: Images) -> None:
    spec = (await planner(tmp_path, images).plan(windows())).spec
    assert spec.cd_drives == ()
    assert "holdfast image pull virtio-win" in " ".join(notices_of(spec))


async def test_linux_gets_no_driver_disc(tmp_path: Path) -> None:
    made = await planner(tmp_path, Images(virtio_win=ImageKind.ISO)).plan(VmCreate(name="l"))
    assert made.spec.cd_drives == ()
    assert "virtio-win" not in " ".join(notices_of(made.spec))


async def test_a_new_disc_leaves_the_drivers_where_they_are(tmp_path: Path) -> None:
    images = Images(setup=ImageKind.ISO, virtio_win=ImageKind.ISO)
    chooser = planner(tmp_path, images)
    spec = (await chooser.plan(windows(iso="setup"))).spec
    changed = await chooser.changed(record_of(spec), VmChange(iso=""))
    assert changed.cd_drives == (CdDrive(id="cd0"), CdDrive(id="cd1", image="sha256:virtio-win"))
    assert "virtio-win" not in " ".join(notices_of(changed))


async def test_disks_after_the_first_are_empty_and_named_in_order(tmp_path: Path) -> None:
    wanted = (NewDisk(image="debian"), NewDisk(size=2 * GIB))
    spec = (
        await planner(tmp_path, Images(debian=ImageKind.DISK)).plan(VmCreate(name="l", disks=wanted))
    ).spec
    assert [(disk.id, disk.size, disk.image) for disk in spec.disks] == [
        ("disk0", GIB, "sha256:debian"),
        ("disk1", 2 * GIB, None),
    ]


async def test_a_disc_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(WrongImageKind):
        await planner(tmp_path, Images(disc=ImageKind.ISO)).plan(
            VmCreate(name="l", disks=(NewDisk(image="disc"),))
        )


async def test_a_mac_of_another_vm_is_refused(tmp_path: Path) -> None:
    mac = "52:54:00:00:00:01"
    first = (await planner(tmp_path, Images()).plan(VmCreate(name="a", nics=(NewNic(mac=mac),)))).spec
    other = planner(tmp_path, Images(), record_of(first))
    with pytest.raises(MacTaken):
        await other.plan(VmCreate(name="b", nics=(NewNic(mac=mac.upper()),)))


async def test_only_a_machine_that_can_take_a_drive_is_given_one(tmp_path: Path) -> None:
    chooser = planner(tmp_path, Images(setup=ImageKind.ISO))
    for guest, state, refused in (
        (GuestOs.LINUX, VmState.RUNNING, False),
        (GuestOs.LINUX, VmState.SAVED, True),
        (GuestOs.WINDOWS, VmState.RUNNING, True),
    ):
        spec = VmSpec(cpus=1, memory=GIB, os=guest)
        record = replace(record_of(spec), state=state, running_spec=spec)
        if refused:
            with pytest.raises(NoCdDrive):
                await chooser.changed(record, VmChange(iso="setup"))
        else:
            assert (await chooser.changed(record, VmChange(iso="setup"))).cd_drives[0].id == "cd0"


def record_of(spec: VmSpec) -> VmRecord:
    return VmRecord(
        id="1",
        name="other",
        number=1,
        state=VmState.OFF,
        spec=spec,
        running_spec=None,
        machine_type=None,
        acceleration=None,
        addresses=(),
        guest=None,
        created=NOW,
        started=None,
        boot_seconds=None,
        failure=None,
        operation=None,
    )


def notices_of(spec: VmSpec) -> tuple[str, ...]:
    return show(record_of(spec), "/folder", None, []).notices
