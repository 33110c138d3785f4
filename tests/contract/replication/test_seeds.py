"""A seed on a medium: what is read is what was written, and nothing else is taken for one."""

import os
import secrets
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.replication import identity
from holdfast.replication.seed_format import (
    MANIFEST,
    SIGNATURE,
    BadSeed,
    Manifest,
    SeedDisk,
    open_part,
    pack_disk,
    read_manifest,
    require_signed,
    unpack_disk,
    write_manifest,
)
from holdfast.spec.units import MIB
from holdfast.trust.protection import RecipientLock, RecipientOpener

SIZE = 9 * MIB + 512
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Medium:
    """A seed of one disk, mostly holes, from north for south."""

    def __init__(self, folder: Path) -> None:
        for name in ("north", "south", "medium"):
            (folder / name).mkdir()
        self.folder, self.scratch = folder / "medium", folder
        self.north = identity.load_or_make(folder / "north")
        self.south = identity.load_or_make(folder / "south")
        self.disk = folder / "disk"
        with self.disk.open("wb") as file:
            file.write(secrets.token_bytes(5000))
            file.seek(6 * MIB - 100)
            file.write(secrets.token_bytes(MIB))
            file.truncate(SIZE)
        key = secrets.token_bytes(32)
        with self.disk.open("rb") as source, (self.folder / "0.blocks").open("wb") as target:
            for _ in pack_disk(source, SIZE, 0, key, target):
                pass
        lock = RecipientLock.of_pem(self.south.certificate.read_bytes())
        self.manifest = Manifest(
            seed=ID,
            vm=ID,
            name="web",
            source=self.north.fingerprint,
            receiver=self.south.fingerprint,
            disks=(SeedDisk(id="disk0", size=SIZE),),
            key=lock.wrap(key, ID.encode()),
        )
        write_manifest(self.folder, self.manifest, self.north.key.read_bytes())

    def read(self, disk: int = 0) -> bytes:
        """What south makes of it."""
        manifest, said, signature = read_manifest(self.folder)
        require_signed(said, signature, self.north.certificate.read_text())
        opener = RecipientOpener.of_pem(self.south.key.read_bytes())
        key = opener.unwrap(manifest.key, manifest.seed.encode())
        target = self.scratch / "read"
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            with open_part(self.folder, disk) as source:
                for _ in unpack_disk(source, manifest.disks[0].size, disk, key, fd):
                    pass
        finally:
            os.close(fd)
        return target.read_bytes()

    @property
    def blocks(self) -> Path:
        return self.folder / "0.blocks"


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    return Medium(tmp_path)


def test_a_disk_is_read_as_it_was_written_and_holes_take_no_room(medium: Medium) -> None:
    assert medium.read() == medium.disk.read_bytes()
    assert medium.blocks.stat().st_size < 4 * MIB
    assert medium.disk.read_bytes()[:5000] not in medium.blocks.read_bytes()


def cut(medium: Medium) -> None:
    """Whole records are missing at the end."""
    data = medium.blocks.read_bytes()
    _, length = struct.unpack_from(">QI", data)
    medium.blocks.write_bytes(data[: 12 + length + 16])


def flip(medium: Medium) -> None:
    data = bytearray(medium.blocks.read_bytes())
    data[2000] ^= 1
    medium.blocks.write_bytes(data)


def move(medium: Medium) -> None:
    """A record says that it lies elsewhere."""
    data = bytearray(medium.blocks.read_bytes())
    struct.pack_into(">Q", data, 0, 4096)
    medium.blocks.write_bytes(data)


def far(medium: Medium) -> None:
    data = bytearray(medium.blocks.read_bytes())
    struct.pack_into(">Q", data, 0, 1 << 60)
    medium.blocks.write_bytes(data)


def link(medium: Medium) -> None:
    medium.blocks.unlink()
    medium.blocks.symlink_to(medium.disk)


def pipe(medium: Medium) -> None:
    (medium.folder / MANIFEST).unlink()
    os.mkfifo(medium.folder / MANIFEST)


def rename(medium: Medium) -> None:
    """The description is another than was signed."""
    said = (medium.folder / MANIFEST).read_bytes()
    (medium.folder / MANIFEST).write_bytes(said.replace(b'"web"', b'"dab"'))


def unsigned(medium: Medium) -> None:
    (medium.folder / SIGNATURE).write_bytes(b"x" * 70)


def flood(medium: Medium) -> None:
    (medium.folder / MANIFEST).write_bytes(b"[" * (2 * MIB))


def by_another(medium: Medium) -> None:
    write_manifest(medium.folder, medium.manifest, medium.south.key.read_bytes())


@pytest.mark.parametrize("spoil", [cut, flip, move, far, link, pipe, rename, unsigned, flood, by_another])
def test_what_is_no_seed_of_that_host_is_refused(medium: Medium, spoil: Callable[[Medium], None]) -> None:
    spoil(medium)
    with pytest.raises(BadSeed):
        medium.read()


def test_a_disks_records_are_not_anothers(medium: Medium) -> None:
    medium.blocks.rename(medium.folder / "1.blocks")
    with pytest.raises(BadSeed):
        medium.read(disk=1)
