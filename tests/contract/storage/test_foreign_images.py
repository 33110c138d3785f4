"""Images made by the real qemu-img, whole, cut off and altered, inspected and converted."""

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rooms import Rooms

from holdfast.host.space import NoSpace
from holdfast.spec.errors import HoldfastError
from holdfast.spec.image import ImageKind
from holdfast.storage.convert import to_qcow2
from holdfast.storage.formats import refusals
from holdfast.storage.inspect import inspect

MIB = 1 << 20
SIZE = 24 * MIB
MADE = {
    "raw": ("raw", ""),
    "qcow2": ("qcow2", ""),
    "qcow2-v2": ("qcow2", "compat=0.10"),
    "qcow2-small": ("qcow2", "cluster_size=512"),
    "qcow2-extended": ("qcow2", "cluster_size=128k,extended_l2=on"),
    "qcow2-zstd": ("qcow2", "compression_type=zstd"),
    "vmdk": ("vmdk", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "subformat=streamOptimized"),
    "vhd-dynamic": ("vpc", "subformat=dynamic,force_size=on"),
    "vhd-fixed": ("vpc", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx", ""),
    "vhdx-fixed": ("vhdx", "subformat=fixed"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same disk in every format; its last megabyte holds data."""
    folder = tmp_path_factory.mktemp("made")
    plain = bytearray(SIZE)
    plain[440:512] = b"\1\2\3\4\0\0\x80\0\1\0\x83\0\0\0\1\0\0\0\xff\0\0\0".ljust(70, b"\0") + b"\x55\xaa"
    noise = random.Random(7)
    for start in (MIB, 9 * MIB, SIZE - MIB):
        plain[start : start + MIB] = noise.randbytes(MIB)
    (folder / "plain").write_bytes(plain)
    files = {}
    for name, (format, options) in MADE.items():
        files[name] = folder / name
        extra = ["-o", options] if options else []
        extra += ["-c"] if name == "qcow2-zstd" else []
        command = ["qemu-img", "convert", "-f", "raw", "-O", format, *extra]
        subprocess.run([*command, str(folder / "plain"), str(folder / name)], check=True)
    return files


@pytest.mark.parametrize("name", MADE)
async def test_inspected_and_converted(rooms: Rooms, made: dict[str, Path], name: str) -> None:
    found = inspect(made[name])
    assert found.format == MADE[name][0]
    assert found.kind is ImageKind.DISK
    assert found.virtual_size == SIZE
    source = rooms.state.scratch / "source"
    source.write_bytes(made[name].read_bytes())
    if rooms.identity:
        source.chmod(0o444)
    target, seen = rooms.state.scratch / "made", []
    await to_qcow2(
        rooms.processes,
        source,
        found.format,
        target,
        owner="operation:x",
        identity=rooms.identity,
        progress=lambda part, _: seen.append(part),
        virtual_size=found.virtual_size,
    )
    assert seen[-1] == 1.0
    assert inspect(target).virtual_size == SIZE
    assert target.stat().st_uid == rooms.state.scratch.stat().st_uid
    plain = str(made[name].with_name("plain"))
    done = await rooms.processes.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", plain, str(target)], owner="test"
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("part", [0.95, 0.6, 0.3])
def test_a_file_cut_off_is_refused(made: dict[str, Path], tmp_path: Path, name: str, part: float) -> None:
    whole = made[name].read_bytes()
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * part)])
    if name in ("raw", "vhd-fixed"):
        # Their length is all that they promise, and only where a partition reaches so far.
        inspect(tmp_path / "cut")
        return
    with pytest.raises((refusals.ImageTruncated, refusals.ImageDamaged)):
        inspect(tmp_path / "cut")


@pytest.mark.parametrize(
    ("command", "error", "value"),
    [
        (
            ["-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow"],
            refusals.ImageHasBackingFile,
            "/etc/shadow",
        ),
        (["-f", "qcow2", "-o", "data_file=data"], refusals.ImageHasDataFile, "data"),
        (["-f", "vmdk", "-o", "subformat=monolithicFlat"], refusals.ImageNamesOtherFiles, "disk-flat.vmdk"),
        (
            ["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
            refusals.ImageNamesOtherFiles,
            "disk-s001.vmdk",
        ),
        (
            [
                "-f",
                "qcow2",
                "--object",
                "secret,id=k,data=x",
                "-o",
                "encrypt.format=luks,encrypt.key-secret=k",
            ],
            refusals.ImageEncrypted,
            2,
        ),
        (["-f", "vdi"], refusals.ImageNotRecognized, "a VirtualBox disk (VDI)"),
    ],
)
def test_files_that_are_only_a_part_are_refused(
    tmp_path: Path, command: list[str], error: type[HoldfastError], value: object
) -> None:
    path = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", *command, str(path), "1M"], check=True, cwd=tmp_path)
    with pytest.raises(error) as caught:
        inspect(path)
    assert caught.value.value == value


def test_a_vmdk_delta_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "delta.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", str(made["vmdk"]), str(path)],
        check=True,
    )
    with pytest.raises(refusals.ImageHasBackingFile) as caught:
        inspect(path)
    assert caught.value.value == str(made["vmdk"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_a_full_disk_is_said_and_nothing_is_left(
    rooms: Rooms, made: dict[str, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    await rooms.processes.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], owner="test")
    try:
        assert small.is_mount()
        with pytest.raises(NoSpace):
            await to_qcow2(rooms.processes, made["raw"], "raw", small / "made", owner="operation:x")
        assert list(small.iterdir()) == []
    finally:
        await rooms.processes.run(["umount", str(small)], owner="test")


@settings(max_examples=2500, deadline=3000)
@given(
    name=st.sampled_from(sorted(set(MADE) - {"raw"})),
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 120), st.integers(0, 4096), st.integers(0, 400_000)),
            st.sampled_from([b"\0", b"\xff", b"\x80", b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\1"]),
        ),
        min_size=1,
        max_size=4,
    ),
    from_end=st.booleans(),
)
def test_altered_headers_never_surprise(
    made: dict[str, Path], name: str, changes: list[tuple[int, bytes]], from_end: bool
) -> None:
    path = made[name].with_name("altered")
    with made[name].open("rb") as source, path.open("wb") as file:
        data = bytearray(source.read(450_000))
        for position, value in changes:
            data[position : position + len(value)] = value
        size = made[name].stat().st_size
        file.write(data)
        file.truncate(size)
        source.seek(size - 2048)
        end = bytearray(source.read())
        if from_end:
            for position, value in changes:
                at = position % 2040
                end[at : at + len(value)] = value
        file.seek(size - 2048)
        file.write(end[:2048])
    try:
        found = inspect(path)
    except HoldfastError as refusal:
        assert refusal.cure
    else:
        assert 512 <= found.virtual_size <= 64 << 40
