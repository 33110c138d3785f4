"""A whole image built from Debian's archive: minutes, and the network."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.storage.build import ImageBuilder
from holdfast.storage.disk_layout import ESP, ROOT, SIZE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed"),
]


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_debian_12_is_built_whole(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "s", tmp_path / "r")
    work, target = tmp_path / "work", tmp_path / "debian.qcow2"
    work.mkdir()
    told: list[float] = []
    builder = ImageBuilder(state, Processes(state))
    built = asyncio.run(
        builder.build("debian-12", target, work, "host", lambda share, text: told.append(share))
    )
    assert built.virtual_size == SIZE
    assert told == sorted(told) and told[-1] == 1.0
    assert target.stat().st_mode & 0o777 == 0o600
    shutil.rmtree(work)

    info = json.loads(output_of("qemu-img", "info", "--output=json", str(target)))
    assert (info["format"], info["virtual-size"]) == ("qcow2", SIZE)
    assert "backing-filename" not in info
    raw = tmp_path / "disk.raw"
    output_of("qemu-img", "convert", "-O", "raw", str(target), str(raw))
    check_partitions(raw)
    check_boot_files(raw)
    check_root(raw, tmp_path / "root.ext4")


def check_partitions(raw: Path) -> None:
    table = json.loads(output_of("sfdisk", "--json", str(raw)))["partitiontable"]
    assert table["label"] == "gpt"
    assert [part["start"] * 512 for part in table["partitions"]] == [ESP.start, ROOT.start]


def check_boot_files(raw: Path) -> None:
    listed = output_of("mdir", "-/", "-b", "-i", f"{raw}@@{ESP.start}", "::")
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/grub.cfg"):
        assert f"::/{name}" in listed
    assert "fbx64" not in listed.lower()


def check_root(raw: Path, root: Path) -> None:
    with raw.open("rb") as source, root.open("wb") as target:
        source.seek(ROOT.start)
        while chunk := source.read(16 * 1024 * 1024):
            target.seek(len(chunk), 1) if not chunk.strip(b"\0") else target.write(chunk)
        target.truncate(ROOT.size)
    assert subprocess.run(["e2fsck", "-fn", str(root)], capture_output=True).returncode == 0

    def ask(request: str) -> str:
        return output_of("debugfs", "-R", request, str(root))

    assert "ssh_host" not in ask("ls -p /etc/ssh")
    assert "Size: 0" in ask("stat /etc/machine-id")
    assert "Fast link dest" in ask("stat /vmlinuz")
    assert "datasource_list: [NoCloud, None]" in ask("cat /etc/cloud/cloud.cfg.d/90_holdfast.cfg")
    owner = ask("stat /usr/bin/sudo")
    assert "Mode:  04755" in owner and "User:     0" in owner
