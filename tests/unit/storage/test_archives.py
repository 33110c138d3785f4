"""OVAs that reach out of themselves, lie about sizes, or end too early: refused before anything is read."""

import tarfile
import time
from pathlib import Path

import pytest
from archives_made import (
    END,
    archived,
    base_256,
    header,
    indexed,
    member,
    pax,
    pax_record,
    sparse,
    summed,
)

from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import GIB, TIB
from holdfast.storage.appliances import refusals
from holdfast.storage.appliances.archive import MAX_MEMBERS, Place, check_path, index

SHADOW = b"root:x"
PATHS = (
    "../escape.ovf",
    "a/../../escape.ovf",
    "a/..",
    "..",
    "/etc/shadow",
    "//etc/shadow",
    "./../x",
    ".//etc/shadow",
    "a//b",
    "..\\x",
    "a\\..\\..\\x",
    "C:/windows/x",
    "c:x",
    "x\ny",
    "x\x1b[2Jy",
    "x\u202ey",
    "a" * 513,
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leads_out_is_refused_whoever_names_it(path: str) -> None:
    with pytest.raises(refusals.ArchivePathUnsafe) as caught:
        check_path(path)
    assert caught.value.cure and "\x1b" not in caught.value.message
    if len(path) < 100:
        with pytest.raises(refusals.ArchivePathUnsafe):
            indexed(member(path, b"x") + END)
    with pytest.raises(refusals.ArchivePathUnsafe):
        indexed(pax(path=path) + member("harmless", b"x") + END)
    with pytest.raises(refusals.ArchivePathUnsafe):
        indexed(member("L", path.encode() + b"\0", b"L") + member("harmless", b"x") + END)


def test_a_path_that_leads_out_by_its_prefix_is_refused() -> None:
    with pytest.raises(refusals.ArchivePathUnsafe):
        indexed(member("shadow", b"x", prefix=b"/etc") + END)
    with pytest.raises(refusals.ArchivePathUnsafe):
        indexed(member("x", b"x", prefix=b"a/../..") + END)


@pytest.mark.parametrize("path", ["a.ovf", "./a.ovf", "folder/a.ovf", "a..b", "..a", "ä.ovf"])
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert indexed(member(path, b"data") + END) == (Place(path.removeprefix("./"), 512, 4),)


BAD = {
    "a symbolic link": (member("x.vmdk", kind=b"2", link=b"/etc/shadow"), refusals.ArchiveHasLink),
    "a hard link": (member("x.vmdk", kind=b"1", link=b"/etc/shadow"), refusals.ArchiveHasLink),
    "a link by a GNU long name": (
        member("K", b"/etc/shadow\0", b"K") + member("x.vmdk", kind=b"2"),
        refusals.ArchiveHasLink,
    ),
    "a link after what it hides": (
        member("x.ovf", b"x") + member("x.vmdk", kind=b"2", link=b"x.ovf"),
        refusals.ArchiveHasLink,
    ),
    "a character device": (member("x", kind=b"3"), refusals.ArchiveMemberUnknown),
    "a block device": (member("x", kind=b"4"), refusals.ArchiveMemberUnknown),
    "a FIFO": (member("x", kind=b"6"), refusals.ArchiveMemberUnknown),
    "a sparse member of GNU tar": (member("x", kind=b"S"), refusals.ArchiveMemberUnknown),
    "a sparse member by pax": (
        pax(GNU__sparse__major="1", GNU__sparse__minor="0") + member("x", b"x"),
        refusals.ArchiveMemberUnknown,
    ),
    "a volume's continuation": (member("x", kind=b"M"), refusals.ArchiveMemberUnknown),
    "two members of one name": (
        member("x.vmdk", b"a") + member("x.vmdk", b"b"),
        refusals.ArchiveDuplicateName,
    ),
    "two members but for case": (
        member("x.vmdk", b"a") + member("X.VMDK", b"b"),
        refusals.ArchiveDuplicateName,
    ),
    "two members but for a dot": (
        member("x.vmdk", b"a") + member("./x.vmdk", b"b"),
        refusals.ArchiveDuplicateName,
    ),
    "two members, one by pax": (
        member("x.vmdk", b"a") + pax(path="x.vmdk") + member("y", b"b"),
        refusals.ArchiveDuplicateName,
    ),
    "more members than any appliance": (
        b"".join(header(f"{number}") for number in range(MAX_MEMBERS + 1)),
        refusals.ArchiveTooLarge,
    ),
    "headers of headers without end": (
        b"".join(pax(comment="x") for _ in range(2 * MAX_MEMBERS + 1)),
        refusals.ArchiveDamaged,
    ),
    "an extended header of 8 GiB": (header("x", 8 * GIB - 1, b"x"), refusals.ArchiveDamaged),
    "an extended header that is cut off": (header("x", 4096, b"x"), refusals.ArchiveTruncated),
    "a pax record without a length": (member("x", b"path=/x\n", b"x"), refusals.ArchiveDamaged),
    "a pax record that is too long": (member("x", b"99 path=x\n", b"x"), refusals.ArchiveDamaged),
    "a pax record that is too short": (member("x", b"2 path=x\n", b"x"), refusals.ArchiveDamaged),
    "a pax record of nothing": (member("x", b"0 path=x\n", b"x"), refusals.ArchiveDamaged),
    "a pax size that is none": (pax(size="-1") + member("x"), refusals.ArchiveDamaged),
    "a pax size beyond any file": (pax(size="9" * 30) + member("x"), refusals.ArchiveDamaged),
    "a size in words": (header("x", b"many\0"), refusals.ArchiveDamaged),
    "a negative size": (header("x", b"\xff" * 12), refusals.ArchiveDamaged),
    "a size in base 256 beyond any file": (header("x", base_256(1 << 80)), refusals.ArchiveDamaged),
    "a size that leads backwards": (pax(size=str(1 << 62)) + member("x"), refusals.ArchiveTruncated),
    "a damaged header": (member("x", b"x") + b"\1" * 512, refusals.ArchiveDamaged),
    "a wrong checksum": (
        member("x", b"x") + header("y")[:148] + b"000001\0 " + header("y")[156:],
        refusals.ArchiveDamaged,
    ),
    "cut off in a header": (member("x", b"x") + header("y")[:100], refusals.ArchiveTruncated),
    "cut off in a member": (member("x", bytes(4096))[:-1024], refusals.ArchiveTruncated),
    "a member of 8 GiB that is not there": (header("x", base_256(8 * GIB)), refusals.ArchiveTruncated),
}


@pytest.mark.parametrize("case", BAD)
def test_each_lie_is_refused(case: str) -> None:
    data, refusal = BAD[case]
    with pytest.raises(refusal) as caught:
        indexed(data)
    assert caught.value.cure


@pytest.mark.parametrize("cut", [1, 511, 513, 700, 1023, 1024, 1025, 5000])
def test_an_archive_that_was_cut_off_is_refused_or_shorter(cut: int) -> None:
    whole = member("a.ovf", b"x" * 700) + member("a.vmdk", b"y" * 4000)
    names = [place.name for place in indexed(whole)]
    try:
        found = indexed(whole[:cut])
    except HoldfastError as refused:
        assert isinstance(refused, refusals.ArchiveTruncated)
    else:  # what cannot be told from a whole one has no member that is not whole
        assert [place.name for place in found] == names[: len(found)]
        assert all(place.offset + place.size <= cut for place in found)


def test_members_beyond_8_gib_are_found_by_either_way_of_writing_them() -> None:
    first, second = 9 * GIB, 70 * TIB
    at = 512 + first
    before = pax(size=str(second), path="second.vmdk")
    with sparse(
        (0, header("first.vmdk", base_256(first), magic=b"ustar  \0")),
        (at, before + header("x", b"00000000000\0")),
        (at + len(before) + 512 + second, member("last.ovf", b"<x/>") + END),
        size=at + len(before) + 512 + second + 2048,
    ) as fd:
        began = time.monotonic()
        found = index(fd, at + len(before) + 512 + second + 2048)
        assert time.monotonic() - began < 4
    assert [(place.name, place.size) for place in found] == [
        ("first.vmdk", first),
        ("second.vmdk", second),
        ("last.ovf", 4),
    ]
    assert found[2].offset == at + len(before) + 512 + second + 512


def test_an_extended_header_counts_for_one_member_only() -> None:
    found = indexed(pax(path="one", size="3") + member("x", b"abc") + member("two", b"de") + END)
    assert [(place.name, place.size) for place in found] == [("one", 3), ("two", 2)]
    everywhere = member("g", pax_record("path", "/etc/shadow"), b"g")
    assert [place.name for place in indexed(everywhere + member("x", b"x") + END)] == ["x"]


def test_whatever_stands_after_the_end_is_not_there() -> None:
    assert [place.name for place in indexed(member("x", b"x") + END + member("/etc/shadow", SHADOW))] == ["x"]


def test_what_python_writes_is_read_in_every_format(tmp_path: Path) -> None:
    long = f"{'folder/' * 20}{'n' * 90}.vmdk"
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format_}.tar"
        name = long if format_ != tarfile.USTAR_FORMAT else "folder/short.vmdk"
        (tmp_path / "data").write_bytes(b"data")
        with tarfile.open(path, "w", format=format_) as archive:
            archive.add(tmp_path / "data", name)
        with path.open("rb") as file:
            (place,) = index(file.fileno(), path.stat().st_size)
            file.seek(place.offset)
            assert (place.name, file.read(place.size)) == (name, b"data")


def test_an_old_header_summed_as_signed_bytes_is_taken() -> None:
    raw = bytearray(header("ä".encode("latin-1") * 3))
    raw[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in raw)
    raw[148:156] = b"%06o\0 " % signed
    assert indexed(bytes(raw) + END)[0].size == 0
    assert summed(bytearray(raw)) != bytes(raw)


def test_an_honest_archive_is_indexed_in_its_order() -> None:
    found = indexed(archived(("z.vmdk", b"disk"), ("a.ovf", b"<x/>")))
    assert [place.name for place in found] == ["z.vmdk", "a.ovf"]
