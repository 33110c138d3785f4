"""Headers made by hand: what they are, and what they lie about."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.spec.errors import HoldfastError
from holdfast.spec.image import ImageKind
from holdfast.storage.formats import refusals
from holdfast.storage.formats.reading import MAX_DISK
from holdfast.storage.inspect import inspect

SECTOR = 512


def mbr(*partitions: tuple[int, int, int]) -> bytes:
    table = b"".join(struct.pack("<B3xB3xII", 0x80, *each) for each in partitions)
    return (b"\x90" * 446 + table.ljust(64, b"\0") + b"\x55\xaa").ljust(SECTOR, b"\0")


def gpt(backup: int) -> bytes:
    protective = mbr((0xEE, 1, 0xFFFFFFFF))
    return protective + (b"EFI PART" + bytes(16) + struct.pack("<QQ", 1, backup)).ljust(SECTOR, b"\0")


def qcow2(size: int = 1 << 20, l1: int = 1, bits: int = 16, incompatible: int = 0, **fields: int) -> bytes:
    cluster = 1 << bits
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        fields.get("version", 3),
        fields.get("backing", 0),
        fields.get("backing_length", 0),
        bits,
        size,
        fields.get("crypt", 0),
        l1,
        fields.get("l1_offset", 3 * cluster),
        fields.get("refcounts", cluster),
        fields.get("refcount_clusters", 1),
        0,
        0,
        incompatible,
        0,
        0,
        4,
        fields.get("length", 104),
    )


def whole(head: bytes, clusters: int = 4) -> bytes:
    return head.ljust(clusters << 16, b"\0")


def iso(blocks: int, length: int) -> bytes:
    volume = bytearray(2048)
    volume[0:6] = b"\x01CD001"
    volume[80:84] = struct.pack("<I", blocks)
    volume[128:130] = struct.pack("<H", 2048)
    return (bytes(32768) + bytes(volume)).ljust(length, b"\0")


def kernel(paragraphs: int, length: int) -> bytes:
    head = bytearray(0x300)
    head[0x1F1] = 4
    head[0x1F4:0x1F8] = struct.pack("<I", paragraphs)
    head[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    return bytes(head).ljust(length, b"\0")


@pytest.mark.parametrize(
    ("data", "format", "kind", "size"),
    [
        (mbr((0x83, 1, 7)).ljust(4096, b"\0"), "raw", ImageKind.DISK, 4096),
        (gpt(7).ljust(4096, b"\0"), "raw", ImageKind.DISK, 4096),
        (whole(qcow2()), "qcow2", ImageKind.DISK, 1 << 20),
        (iso(20, 40960), "iso", ImageKind.ISO, 40960),
        (kernel(64, 4096), "kernel", ImageKind.KERNEL, 4096),
        (b"\x1f\x8b\x08" + bytes(61), "initrd", ImageKind.INITRD, 64),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "initrd", ImageKind.INITRD, 64),
        (b"070701" + b"0" * 94, "initrd", ImageKind.INITRD, 100),
    ],
)
def test_recognized(tmp_path: Path, data: bytes, format: str, kind: ImageKind, size: int) -> None:
    (tmp_path / "file").write_bytes(data)
    found = inspect(tmp_path / "file")
    assert (found.format, found.kind, found.virtual_size) == (format, kind, size)
    assert inspect(tmp_path / "file", kind) == found


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", refusals.ImageNotRecognized),
        (b"#!/bin/sh\necho hello\n" * 100, refusals.ImageNotRecognized),
        (os.urandom(16) + bytes(8192), refusals.ImageNotRecognized),
        (bytes(257) + b"ustar".ljust(1000, b"\0"), refusals.ImageNotRecognized),
        (mbr((0x83, 1, 100)).ljust(4096, b"\0"), refusals.ImageTruncated),
        (gpt(100).ljust(4096, b"\0"), refusals.ImageTruncated),
        (iso(40, 40960), refusals.ImageTruncated),
        (kernel(640, 4096), refusals.ImageTruncated),
        (b"QFI\xfb", refusals.ImageTruncated),
        (qcow2(), refusals.ImageTruncated),
        (whole(qcow2(), 3), refusals.ImageTruncated),
        (whole(qcow2(refcounts=1 << 40)), refusals.ImageTruncated),
        (whole(qcow2(l1_offset=1 << 40)), refusals.ImageTruncated),
        (whole(qcow2(size=0)), refusals.ImageSizeAbsurd),
        (whole(qcow2(size=MAX_DISK + 512)), refusals.ImageSizeAbsurd),
        (whole(qcow2(size=(1 << 64) - 1)), refusals.ImageSizeAbsurd),
        (whole(qcow2(size=1 << 40)), refusals.ImageDamaged),
        (whole(qcow2(l1=1 << 30)), refusals.ImageDamaged),
        (whole(qcow2(refcount_clusters=0)), refusals.ImageDamaged),
        (whole(qcow2(bits=30)[:104]), refusals.ImageDamaged),
        (whole(qcow2(crypt=2)), refusals.ImageEncrypted),
        (whole(qcow2(incompatible=1 << 9)), refusals.ImageFeatureUnknown),
        (whole(qcow2(incompatible=1 << 1)), refusals.ImageDamaged),
        (whole(qcow2(version=1)), refusals.ImageFeatureUnknown),
        (b"KDMV" + bytes(2000), refusals.ImageFeatureUnknown),
        (b"vhdxfile" + bytes(1 << 20), refusals.ImageDamaged),
        (b"conectix" + bytes(2000), refusals.ImageTruncated),
    ],
)
def test_refused(tmp_path: Path, data: bytes, error: type[HoldfastError]) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(error) as caught:
        inspect(tmp_path / "file")
    assert caught.value.cure


def test_an_l2_table_beyond_the_end(tmp_path: Path) -> None:
    data = bytearray(whole(qcow2()))
    data[3 << 16 : (3 << 16) + 8] = struct.pack(">Q", 1 << 63 | 1 << 30)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(refusals.ImageTruncated):
        inspect(tmp_path / "file")


def test_a_backing_file_is_named(tmp_path: Path) -> None:
    head = qcow2(backing=200, backing_length=11).ljust(200, b"\0") + b"/etc/shadow"
    (tmp_path / "file").write_bytes(whole(head))
    with pytest.raises(refusals.ImageHasBackingFile) as caught:
        inspect(tmp_path / "file")
    assert caught.value.value == "/etc/shadow"


def test_a_data_file_is_named(tmp_path: Path) -> None:
    head = qcow2(incompatible=4) + struct.pack(">II", 0x44415441, 11) + b"/etc/shadow"
    (tmp_path / "file").write_bytes(whole(head))
    with pytest.raises(refusals.ImageHasDataFile) as caught:
        inspect(tmp_path / "file")
    assert caught.value.value == "/etc/shadow"


def test_a_descriptor_names_what_it_would_open(tmp_path: Path) -> None:
    text = '# Disk DescriptorFile\nversion=1\nRW 100 FLAT "/etc/shadow" 0\n'
    (tmp_path / "file").write_text(text)
    with pytest.raises(refusals.ImageNamesOtherFiles) as caught:
        inspect(tmp_path / "file")
    assert caught.value.value == "/etc/shadow"


def test_an_explicit_kind_decides_where_headers_do_not(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(8192))
    (tmp_path / "text").write_bytes(b"root:x:0:0:\n" * 128)
    (tmp_path / "hybrid").write_bytes(mbr((0x17, 1, 60)) + iso(20, 40960)[512:])
    assert inspect(tmp_path / "zeros", ImageKind.DISK).format == "raw"
    assert inspect(tmp_path / "hybrid").kind is ImageKind.ISO
    assert inspect(tmp_path / "hybrid", ImageKind.DISK).format == "raw"
    for name, kind in (("zeros", None), ("text", ImageKind.DISK), ("zeros", ImageKind.KERNEL)):
        with pytest.raises(refusals.ImageNotRecognized):
            inspect(tmp_path / name, kind)
    (tmp_path / "q").write_bytes(whole(qcow2()))
    with pytest.raises(refusals.ImageKindMismatch):
        inspect(tmp_path / "q", ImageKind.ISO)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(refusals.ImageNotRecognized):
        inspect(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/shadow")
    with pytest.raises(OSError):
        inspect(tmp_path / "link")


@settings(max_examples=1500, deadline=2000)
@given(
    start=st.sampled_from(
        [b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix", b"# Disk DescriptorFile", b"EFI PART", b""]
    ),
    rest=st.binary(max_size=2000),
    size=st.sampled_from([0, 1024, 1 << 16, 1 << 20, 1 << 40]),
    end=st.sampled_from([b"", b"conectix".ljust(512, b"\xff"), b"conectix".ljust(512, b"\0")]),
    kind=st.sampled_from([None, *ImageKind]),
)
def test_any_bytes_give_an_answer_or_our_own_refusal(
    tmp_path_factory: pytest.TempPathFactory,
    start: bytes,
    rest: bytes,
    size: int,
    end: bytes,
    kind: ImageKind | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    with path.open("wb") as file:
        file.write(start + rest)
        file.truncate(max(size, file.tell()))
        file.seek(0, os.SEEK_END)
        file.write(end)
    try:
        found = inspect(path, kind)
    except HoldfastError as refusal:
        assert refusal.cure
        assert type(refusal).id.startswith("image-")
    else:
        assert 0 <= found.virtual_size <= max(MAX_DISK, path.stat().st_size)
