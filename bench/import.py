"""A disk out of an OVA into a volume as `vm import` brings it, with the digest that a manifest wants.

Against qemu-img convert of it unpacked, and against unpacking first; none of these two works a digest out.
"""

import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from bench._disk import GIB, kept, ova_disk, raw_disk, sync, vmdk_disk
from bench._figures import Figure, parser, report, say, spread
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.host.vm_users import VmUsers
from holdfast.spec.attachment import FilePlace
from holdfast.spec.vm import Disk
from holdfast.storage.appliances.bringing import Bringing, examine
from holdfast.storage.appliances.manifest import Digest
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.stream_to_volume import Unpacked

MIB = 1 << 20


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    options.add_argument("--gib", type=float, default=2.0, help="GiB of files on the disk")
    chosen = options.parse_args(argv)
    size = int(chosen.gib * GIB)
    work = Path(tempfile.mkdtemp(prefix="import-", dir=kept()))
    try:
        figures = _measure(size, work, chosen.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("import", figures, chosen.json)


def _measure(size: int, work: Path, rounds: int) -> list[Figure]:
    ova, vmdk, raw = ova_disk(size), vmdk_disk(size), raw_disk(size)
    with vmdk.open("rb") as file:
        digest = Digest("SHA256", hashlib.file_digest(file, "sha256").hexdigest())
    ours: list[float] = []
    convert: list[float] = []
    direct: list[float] = []
    unpack: list[float] = []
    extra = memory = 0
    for number in range(rounds):
        target = work / "ours.qcow2"
        seconds, more, done = _ours(ova, digest, raw.stat().st_size, target, work)
        if number == 0:
            _compare(raw, target)
        ours.append(seconds)
        extra, memory = max(extra, more), max(memory, done.memory)
        target.unlink()
        convert.append(_convert(vmdk, work / "convert.qcow2"))
        direct.append(_convert(vmdk, work / "direct.qcow2", "-t", "none"))
        unpack.append(_unpack(ova[0], work))
        say(f"round {number + 1}: {ours[-1]:.1f} s; convert {convert[-1]:.1f} s; unpack {unpack[-1]:.1f} s")
    rate = size / MIB / statistics.median(ours)
    return [
        _ratio("vs_convert", ours, convert, 0.8, "over qemu-img convert of the unpacked VMDK"),
        _ratio("vs_convert_direct", ours, direct, None, "over the same with `-t none`, past the page cache"),
        _ratio("vs_unpack", ours, unpack, 0.5, "over tar and qemu-img convert"),
        Figure("extra_disk_mib", extra / MIB, "MiB", 0, "lower", rounds, "at the peak, beyond the volume"),
        Figure("rss_mib", memory / MIB, "MiB", 200, "lower", rounds, "of the process that reads and writes"),
        Figure("rate_mib_s", rate, "MiB/s", None, "higher", rounds, "of files, with digest and fsync"),
    ]


def _ratio(name: str, ours: list[float], theirs: list[float], aim: float | None, what: str) -> Figure:
    note = f"{what}; ours {spread(ours)} s, theirs {spread(theirs)} s"
    value = statistics.median(ours) / statistics.median(theirs)
    return Figure(name, value, "", aim, "lower", len(ours), note)


def _ours(
    ova: tuple[Path, int], digest: Digest, size: int, target: Path, work: Path
) -> tuple[float, int, Unpacked]:
    """Seconds to a durable volume, the peak of disk space beyond it, and what the process says."""
    state = StateFolder(work / "state", work / "runtime")
    state.prepare()
    watch = _Watch(work)
    began = time.perf_counter()
    done = asyncio.run(_import(state, ova, digest, size, target))
    seconds = time.perf_counter() - began
    return seconds, max(0, watch.end() - target.stat().st_blocks * 512), done


async def _import(
    state: StateFolder, ova: tuple[Path, int], digest: Digest, size: int, target: Path
) -> Unpacked:
    """As `vm import` brings a disk that a manifest names, its look at the result included."""
    path, offset = ova
    with tarfile.open(path) as archive:
        length = archive.getmember("disk.vmdk").size
    fd = os.open(path, os.O_RDONLY)
    try:
        held = HeldFile("disk.vmdk", fd, offset, length)
        bringing = Bringing(Processes(state), state.runtime, VmUsers().converter, "operation:bench")
        disk = Disk(id="disk0", volume="disk0", size=size)
        done = await bringing.bring(
            held, examine(held), digest, FilePlace(path=target), disk, lambda _share, _text: None
        )
    finally:
        os.close(fd)
    if done is None:
        raise SystemExit("the disk was not read as a stream")
    return done


def _convert(vmdk: Path, target: Path, *options: str) -> float:
    began = time.perf_counter()
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "qcow2", *options, str(vmdk), str(target)]
    subprocess.run(command, check=True)
    sync(target)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def _unpack(ova: Path, work: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["tar", "-xf", str(ova), "-C", str(work), "disk.vmdk"], check=True)
    sync(work / "disk.vmdk")
    converted = _convert(work / "disk.vmdk", work / "unpacked.qcow2")
    (work / "disk.vmdk").unlink()
    return max(time.perf_counter() - began, converted)


def _compare(raw: Path, volume: Path) -> None:
    for command in (
        ["qemu-img", "check", "-q", "-f", "qcow2", str(volume)],
        ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(raw), str(volume)],
    ):
        subprocess.run(command, check=True)


class _Watch:
    """The most disk space that the files of a folder take, seen every 20 ms."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, sum(_stored(each) for each in self._folder.iterdir()))

    def end(self) -> int:
        self._done.set()
        self._thread.join()
        return self._most


def _stored(path: Path) -> int:
    try:
        return 0 if path.is_dir() else path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
