"""From a store and disks to one word, with real keys, loaders and file systems; nothing is started."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from boot_disks import boot_disk, boot_programs

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.attachment import Layer
from holdfast.spec.certificates import CertificateStatus
from holdfast.storage.formats.partitions import partitions
from holdfast.storage.formats.qcow2_chain import open_chain
from holdfast.trust import authenticode
from holdfast.trust.authenticode import Loader
from holdfast.trust.boot_entries import BootEntry
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import KeyStores, Store
from holdfast.trust.signature_lists import SHA256, X509, Signature, database_of
from holdfast.vm import loaders
from holdfast.vm.certificates import (
    LoaderNotReadable,
    Standpoint,
    Subject,
    WouldNotBoot,
    assess,
    look,
    plan,
    view,
    worked_out,
)
from holdfast.vm.loaders import find_loaders

Disks = tuple[tuple[str, tuple[Layer, ...]], ...]
_UPDATE = KeyChange(successors=True)
_ME = uuid.UUID(int=1)
_IN_TIME, _LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    import asyncio

    folder = tmp_path_factory.mktemp("authorities")
    state = StateFolder(folder / "state", folder / "run")
    state.prepare()

    async def read() -> dict[str, bytes]:
        processes = Processes(state)
        return dict(await KeyStores(processes, state, VariableStores(processes, state)).authorities())

    return asyncio.run(read())


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., Disks]:
    """`disk(path=program, ...)`: one disk with these programs."""

    def made(files: dict[str, str], name: str = "disk0") -> Disks:
        programs = boot_programs()
        chosen = {path: programs[program] for path, program in files.items()}
        raw = boot_disk(tmp_path / f"{name}.raw", chosen, 8)
        return ((name, (Layer.of_file(raw, "raw"),)),)

    return made


@pytest.fixture
def standing(tmp_path: Path, store_of_2011: bytes) -> Callable[..., Standpoint]:
    def found(disks: Disks, secure_boot: bool = True) -> Standpoint:
        (tmp_path / "vm/firmware").mkdir(parents=True, exist_ok=True)
        (tmp_path / "vm/firmware/variables.fd").write_bytes(store_of_2011)
        return look(Subject("web", tmp_path / "vm", secure_boot, disks))

    return found


def with_keys(at: Standpoint, **databases: tuple[Signature, ...]) -> Standpoint:
    """The same with more in its databases."""
    assert isinstance(at.store, Store)
    held = at.store.keys.databases
    more = {name: database_of((*held[name].signatures, *new)) for name, new in databases.items()}
    keys = replace(at.store.keys, databases={**held, **more})
    return replace(at, store=replace(at.store, keys=keys))


def test_the_word_goes_by_keys_time_and_loader(
    disk: Callable[..., Disks], standing: Callable[..., Standpoint], authorities: dict[str, bytes]
) -> None:
    at = standing(disk({"EFI/BOOT/BOOTX64.EFI": "shim"}))
    status, reason = assess(at, authorities, _IN_TIME)
    assert status is CertificateStatus.UPDATE_AVAILABLE and "Expired" not in reason
    status, reason = assess(at, authorities, _LATE)
    assert status is CertificateStatus.UPDATE_AVAILABLE and "Expired" in reason
    seen = view(at, authorities, _LATE)
    assert len(seen.expired) == 3 and len(seen.missing) == 4 and seen.loader is not None
    assert (seen.loader.standing, seen.loader.after_update) == ("accepted", "accepted")
    done = with_keys(
        at,
        db=tuple(
            Signature(X509, _ME, authorities[each]) for each in authorities if not each.startswith("kek")
        ),
        KEK=(Signature(X509, _ME, authorities["kek-2k-ca-2023"]),),
    )
    assert assess(done, authorities, _LATE)[0] is CertificateStatus.READY
    # Successors that are revoked are not added, so what has expired stays without one.
    new = ("windows-uefi-ca-2023", "uefi-ca-2023", "option-rom-uefi-ca-2023", "kek-2k-ca-2023")
    others = with_keys(at, dbx=tuple(Signature(X509, _ME, authorities[each]) for each in new))
    others = replace(others, loaders=find_loaders((), ()))
    assert assess(others, authorities, _LATE)[0] is CertificateStatus.EXPIRED
    assert assess(others, authorities, _IN_TIME)[0] is CertificateStatus.READY


def test_without_secure_boot_or_store(
    disk: Callable[..., Disks], standing: Callable[..., Standpoint], tmp_path: Path
) -> None:
    assert assess(standing((), secure_boot=False), {})[0] is CertificateStatus.NO_SECURE_BOOT
    (tmp_path / "vm/firmware/variables.fd").write_bytes(bytes(5000))
    damaged = look(Subject("web", tmp_path / "vm", True, ()))
    assert assess(damaged, {})[0] is CertificateStatus.UNREADABLE
    assert assess(look(Subject("web", tmp_path / "none", True, ())), {})[0] is CertificateStatus.UNREADABLE
    made = plan(damaged, _UPDATE, {})
    assert made.when == "never" and made.reason


def test_the_loader_that_an_entry_names_comes_before_the_default(disk: Callable[..., Disks]) -> None:
    disks = disk({"EFI/BOOT/BOOTX64.EFI": "unsigned", "EFI/debian/shimx64.efi": "shim", "x.efi": "grub"})
    with open_chain(disks[0][1]) as opened:
        guid = partitions(opened)[0].guid
    named = BootEntry(1, "debian", guid, "\\EFI\\debian\\shimx64.efi")
    elsewhere = BootEntry(2, "other", uuid.UUID(int=9), "\\x.efi")
    found = find_loaders(disks, [elsewhere, named])
    assert [each.path for each in found.found] == ["\\EFI\\debian\\shimx64.efi", "\\EFI\\BOOT\\BOOTX64.EFI"]
    assert [each.path for each in find_loaders(disks, []).found] == ["\\EFI\\BOOT\\BOOTX64.EFI"]


def test_firmware_goes_on_to_the_next_loader_where_one_is_refused(
    disk: Callable[..., Disks], standing: Callable[..., Standpoint], authorities: dict[str, bytes]
) -> None:
    disks = (
        *disk({"EFI/BOOT/BOOTX64.EFI": "unsigned"}, "disk0"),
        *disk({"EFI/BOOT/BOOTX64.EFI": "shim"}, "disk1"),
    )
    at = standing(disks)
    seen = view(at, authorities)
    assert seen.loader is not None and seen.loader.disk == "disk1"
    assert seen.status is CertificateStatus.UPDATE_AVAILABLE
    shim = next(each for each in at.loaders.found if each.disk == "disk1").loader
    revoked = KeyChange(True, {"dbx": (Signature(SHA256, _ME, shim.digests["sha256"]),)})
    with pytest.raises(WouldNotBoot):
        worked_out(at, (revoked,), authorities)
    assert list(worked_out(at, (replace(revoked, force=True),), authorities)) == ["db", "KEK", "dbx"]


def test_where_a_disk_cannot_be_read_only_additions_are_made(
    standing: Callable[..., Standpoint], authorities: dict[str, bytes], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + bytes(200))
    at = standing((("disk0", (Layer.of_file(broken, "qcow2"),)),))
    assert at.loaders.unreadable and "disk0" in at.loaders.note
    assert list(worked_out(at, (_UPDATE,), authorities)) == ["db", "KEK"]
    revocation = KeyChange(added={"dbx": (Signature(SHA256, _ME, bytes(32)),)})
    with pytest.raises(LoaderNotReadable):
        worked_out(at, (revocation,), authorities)


def test_an_empty_disk_stops_nothing(
    standing: Callable[..., Standpoint], authorities: dict[str, bytes], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1024**2))
    at = standing((("disk0", (Layer.of_file(empty, "raw"),)),))
    assert not at.loaders.unreadable and at.loaders.note
    revocation = KeyChange(added={"dbx": (Signature(SHA256, _ME, bytes(32)),)})
    assert list(worked_out(at, (revocation,), authorities)) == ["dbx"]


def test_keys_that_firmware_does_not_take_are_refused_for_that_vm_alone(
    standing: Callable[..., Standpoint], authorities: dict[str, bytes]
) -> None:
    many = tuple(Signature(SHA256, _ME, number.to_bytes(32)) for number in range(800))
    made = plan(standing(()), KeyChange(successors=True, added={"dbx": many}), authorities)
    assert made.when == "never" and "bytes" in made.reason and made.vm == "web"


def test_no_more_is_read_of_disks_than_the_budget_allows(
    disk: Callable[..., Disks], standing: Callable[..., Standpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (disk({"EFI/BOOT/BOOTX64.EFI": "shim"}, name) for name in ("disk0", "disk1"))
    size = boot_programs()["shim"].stat().st_size
    monkeypatch.setattr(loaders, "_MOST_READ", size + size // 2)
    found = standing((*one, *two)).loaders
    assert [each.disk for each in found.found] == ["disk0"]
    assert found.unreadable and "disk1 was not read to its end" in found.note
    monkeypatch.setattr(loaders, "_MOST_READ", 2 * size + 1024**2)
    found = standing((*one, *two)).loaders
    assert [each.disk for each in found.found] == ["disk0", "disk1"] and not found.unreadable


def test_what_lies_beside_several_loaders_is_read_once(
    disk: Callable[..., Disks], monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[int] = []

    def examine(data: bytes) -> Loader:
        examined.append(len(data))
        return authenticode.examine(data)

    monkeypatch.setattr(loaders, "examine", examine)
    chain = {"a/shimx64.efi": "shim", "a/grubx64.efi": "grub", "a/other.efi": "unsigned"}
    named = [BootEntry(n, "", None, f"\\a\\{name}") for n, name in enumerate(("shimx64.efi", "other.efi"))]
    found = find_loaders(disk(chain), named).found
    assert len(examined) == 3 and all(each.second is not None for each in found)
