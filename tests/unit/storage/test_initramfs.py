"""Names of modules in initial RAM disks: found where they are files, in time that grows with the length."""

import time

import pytest
from archives_made import held

from holdfast.storage.formats.initramfs import ModuleSearch, NotInitramfs, front

NAME = b"usr/lib/modules/6.1.0-9-amd64/kernel/drivers/block/virtio_blk.ko"


def found(*pieces: bytes) -> set[str]:
    search = ModuleSearch({"virtio_blk", "nvme"})
    for piece in pieces:
        search.feed(piece)
    return search.found


def test_a_file_is_found_however_it_is_cut() -> None:
    whole = b"x" * 600 + NAME + b"\0" + b"y" * 600
    for at in range(500, len(whole) - 500):
        assert found(whole[:at], whole[at:]) == {"virtio_blk"}
    assert found(*(bytes([each]) for each in whole)) == {"virtio_blk"}


@pytest.mark.parametrize(
    ("data", "there"),
    [
        (NAME + b".xz\0", True),
        (NAME + b".zst\0", True),
        (NAME + b"\n", False),
        (NAME + b".bak\0", False),
        (NAME[NAME.index(b"kernel") :] + b"\0", False),
        (NAME.replace(b"/kernel", b"\n/kernel") + b"\0", False),
        (NAME.replace(b"/kernel", b"\0/kernel") + b"\0", False),
        (NAME.replace(b"virtio_blk", b"xvirtio_blk") + b"\0", False),
    ],
)
def test_a_name_in_a_list_is_no_file(data: bytes, there: bool) -> None:
    assert found(data) == ({"virtio_blk"} if there else set())


@pytest.mark.parametrize("pattern", [b"lib/modules/a/", b"/virtio_blk.ko", b"lib/modules/x/virtio_blk.ko"])
def test_it_takes_no_longer_for_what_nearly_fits(pattern: bytes) -> None:
    piece = pattern * (65536 // len(pattern))
    began = time.monotonic()
    assert found(*[piece] * 16) == set()  # 1 MiB
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("data", [b"", b"x", b"070701", b"070701" + b"z" * 104, b"\0" * 4096])
def test_what_is_none_is_refused(data: bytes) -> None:
    with held([("x", data)]) as files, pytest.raises(NotInitramfs):
        front(files[0].fd, len(data), ModuleSearch(()))
