"""A volume into a streamOptimized VMDK, against qemu-img convert -O vmdk -o subformat=streamOptimized."""

import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._disk import GIB, kept, raw_disk, sync
from bench._figures import Figure, parser, report, say, spread
from holdfast.host.files import own
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.host.vm_users import VmUsers
from holdfast.spec.attachment import Layer
from holdfast.storage.convert import VOLUME_OPTIONS
from holdfast.storage.volume_to_stream import Packed, volume_to_stream

MIB = 1 << 20


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    options.add_argument("--gib", type=float, default=2.0, help="GiB of files on the disk")
    chosen = options.parse_args(argv)
    size = int(chosen.gib * GIB)
    work = Path(tempfile.mkdtemp(prefix="export-", dir=kept()))
    work.chmod(0o711)
    try:
        figures = _measure(raw_disk(size), work, size, chosen.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("export", figures, chosen.json)


def _measure(raw: Path, work: Path, size: int, rounds: int) -> list[Figure]:
    volume = work / "disk.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", VOLUME_OPTIONS]
    subprocess.run([*convert, str(raw), str(volume)], check=True)
    user = VmUsers().converter
    if user:
        own(volume, user.uid, user.gid)
    ours: list[float] = []
    theirs: list[float] = []
    memory = length = other = 0
    for number in range(rounds):
        target = work / "ours.vmdk"
        began = time.perf_counter()
        done = asyncio.run(_export(work, volume, raw.stat().st_size, target))
        ours.append(time.perf_counter() - began)
        if number == 0:
            compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", str(raw), str(target)]
            subprocess.run(compare, check=True)
        memory, length = max(memory, done.memory), done.size
        target.unlink()
        seconds, other = _convert(volume, work / "theirs.vmdk")
        theirs.append(seconds)
        say(f"round {number + 1}: {ours[-1]:.1f} s; qemu-img {theirs[-1]:.1f} s")
    ratio = statistics.median(ours) / statistics.median(theirs)
    note = f"over qemu-img convert; ours {spread(ours)} s, theirs {spread(theirs)} s"
    rate = size / MIB / statistics.median(ours)
    return [
        Figure("vs_convert", ratio, "", 0.6, "lower", rounds, note),
        Figure("size_ratio", length / other, "", None, "lower", rounds, "our file over qemu-img's"),
        Figure("rss_mib", memory / MIB, "MiB", 200, "lower", rounds, "of the process that reads and writes"),
        Figure("rate_mib_s", rate, "MiB/s", None, "higher", rounds, "of files, with digest and fsync"),
    ]


async def _export(work: Path, volume: Path, size: int, target: Path) -> Packed:
    state = StateFolder(work / "state", work / "runtime")
    state.prepare()
    return await volume_to_stream(
        Processes(state),
        (Layer.of_file(volume, "qcow2"),),
        size,
        target,
        owner="operation:bench",
        identity=VmUsers().converter,
        progress=lambda _share, _text: None,
        algorithms=("sha256",),
    )


def _convert(volume: Path, target: Path) -> tuple[float, int]:
    began = time.perf_counter()
    options = ["-f", "qcow2", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *options, str(volume), str(target)], check=True)
    sync(target)
    seconds, size = time.perf_counter() - began, target.stat().st_size
    target.unlink()
    return seconds, size


if __name__ == "__main__":
    main(sys.argv[1:])
