"""Replicas: the RPO under load, what it costs the VM and both hosts, and a cycle against QEMU's own backup.

The receiver is a real daemon on loopback. The VMs are synthetic (see `_synthetic`): a guest that is emulated
writes more slowly than what is to be measured. All content is noise, so nothing is won by compression.
"""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / each) for each in ("machines", "guests")]

from live_host import LiveHost, live_host
from test_replica import free_port

from bench._backup_peer import BackupPeer
from bench._figures import Figure, parser, percentile, report, say, spread
from bench._synthetic import (
    Sending,
    Source,
    SyntheticVm,
    own_memory,
    processor_seconds,
    written_bytes,
)
from bench._writer import Writer

_MIB = 1 << 20
_GIB = 1 << 30
_BLOCK = 16 * 1024
_WARM_SECONDS = 3.0


@dataclass
class Pair:
    """A source and a real receiver."""

    work: Path
    source: Source
    receiver: LiveHost
    rounds: int
    seconds: float
    vms: int

    async def vm(self, name: str, size: int) -> SyntheticVm:
        made = SyntheticVm(self.work / name, name, size)
        await made.launch()
        return made

    @contextlib.asynccontextmanager
    async def replicated(self, name: str, size: int) -> AsyncIterator[tuple[SyntheticVm, Sending]]:
        made = await self.vm(name, size)
        sending = await self.source.sender(made)
        try:
            await sending.initial()
            yield made, sending
        finally:
            await sending.end()
            await made.kill()

    def processor_seconds(self) -> float:
        """Of all that replicates, on both sides; not QEMU's."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        both = processor_seconds(self.source.worker(), self.receiver.pid)
        return both + own.ru_utime + own.ru_stime

    def used(self, name: str) -> int:
        held = self.receiver.call("GET", "/v1/replica/held")
        return next(each["used"] for each in held if each["name"] == name)


async def _rpo(pair: Pair) -> list[Figure]:
    figures = []
    async with pair.replicated("rpo", _GIB) as (vm, sending):
        for megabytes, aim in ((1, None), (10, 1.5), (50, None)):
            figures += await _rpo_at(pair, vm, sending, megabytes, aim)
            await sending.current()
    return figures


async def _rpo_at(
    pair: Pair, vm: SyntheticVm, sending: Sending, megabytes: int, aim: float | None
) -> list[Figure]:
    found, rates = [], []
    begun = (
        pair.processor_seconds(),
        sending.sender.figures.now(time.monotonic()),
        written_bytes(pair.receiver.pid),
        await asyncio.to_thread(pair.used, vm.name),
    )
    changed = 0
    for number in range(pair.rounds):
        seconds = _WARM_SECONDS + pair.seconds
        writer = Writer(vm.path, vm.size, block=_BLOCK, rate=megabytes * 1e6, seconds=seconds, seed=number)
        try:
            await asyncio.sleep(_WARM_SECONDS)
            sending.sender.measure_anew()
            done = await asyncio.to_thread(writer.result)
        finally:
            writer.end()
        found.append(sending.rpo_p99())
        rates.append(done["bytes"] / done["seconds"] / 1e6)
        changed += done["bytes"]
        say(f"{megabytes} MB/s: p99 {found[-1]:.2f} s at {rates[-1]:.1f} MB/s")
    await sending.current()
    note = f"{spread(found)}; a synthetic writer of random 16 KiB did {statistics.median(rates):.1f} MB/s"
    figures = [
        Figure(f"rpo_p99_s_{megabytes}mb", statistics.median(found), "s", aim, "lower", len(found), note)
    ]
    if megabytes == 10:
        cost = (pair.processor_seconds() - begun[0]) / (changed / 1e9)
        wrote = (written_bytes(pair.receiver.pid) - begun[2]) / changed
        space = (await asyncio.to_thread(pair.used, vm.name) - begun[3]) / changed
        figures += [
            Figure("cpu_s_per_gb", cost, "s", None, "lower", 1, "both sides without QEMU, at 10 MB/s"),
            Figure(
                "receiver_writes_ratio", wrote, "", None, "lower", 1, "written there per byte changed here"
            ),
            Figure(
                "history_space_ratio", space, "", None, "lower", 1, "more room there per byte changed here"
            ),
        ]
    return figures


async def _foreground(pair: Pair) -> list[Figure]:
    """Two equal VMs, one of them replicated, written to in turns.

    A p99 is of all writes of all turns: whether the host writes out memory in one of them is chance.
    """
    loads = {"": 10e6, "_saturated": 0.0}
    found: dict[str, dict[str, list[tuple[float, list[float]]]]] = {
        each: {"with": [], "without": []} for each in loads
    }
    async with pair.replicated("with", _GIB) as (vm, sending):
        other = await pair.vm("without", _GIB)
        try:
            for number in range(pair.rounds + 1):
                for load, rate in loads.items():
                    sides = [("with", vm), ("without", other)]
                    for side, each in sides if number % 2 else reversed(sides):
                        done = await _written(pair, each, rate, number)
                        found[load][side].append(done)
                        speed, latency = done[0] / 1e6, _p99(done) * 1000
                        say(f"{side} replication{load}: {speed:.1f} MB/s, p99 {latency:.1f} ms")
                        await sending.current()
        finally:
            await other.kill()
    figures = []
    for load in loads:
        ours, free = found[load]["with"], found[load]["without"]
        throughput = [each[0] / other[0] for each, other in zip(ours, free, strict=True)]
        latencies = [_p99(each) / _p99(other) for each, other in zip(ours, free, strict=True)]
        both = [percentile([one for each in side for one in each[1]], 0.99) for side in (ours, free)]
        aims = (0.95, 1.10) if not load else (None, None)
        what = "10 MB/s of random 16 KiB" if not load else "as fast as they are done, random 16 KiB, noise"
        count = len(ours)
        figures += [
            Figure(
                f"foreground{load}_throughput_ratio",
                statistics.median(throughput),
                "",
                aims[0],
                "higher",
                count,
                f"{spread(throughput)}; synthetic, {what}",
            ),
            Figure(
                f"foreground{load}_p99_ratio",
                both[0] / both[1],
                "",
                aims[1],
                "lower",
                count,
                f"{both[0] * 1000:.2f} and {both[1] * 1000:.2f} ms; of turns {spread(latencies)}; {what}",
            ),
        ]
    return figures


async def _written(pair: Pair, vm: SyntheticVm, rate: float, seed: int) -> tuple[float, list[float]]:
    """Bytes a second, and the latencies of all writes in seconds."""
    seconds = pair.seconds / (1 if rate else 2)
    writer = Writer(vm.path, vm.size, block=_BLOCK, rate=rate, seconds=seconds, seed=seed)
    done = await asyncio.to_thread(writer.result)
    return done["bytes"] / done["seconds"], done["latencies"]


def _p99(done: tuple[float, list[float]]) -> float:
    return percentile(done[1], 0.99)


async def _cycle(pair: Pair) -> list[Figure]:
    """The same dirty set, sent once by us and once by QEMU, in turns."""
    size, share = _GIB, 128 * _MIB
    vm = await pair.vm("cycle", size)
    sending = await pair.source.sender(vm, rpo=3600)
    peer = None
    try:
        await sending.initial()
        peer = await asyncio.to_thread(BackupPeer, pair.work / "peer", size, free_port(), vm.monitor)
        ours, theirs = [], []
        for number in range(2 * pair.rounds):
            await asyncio.to_thread(_dirty, vm.path, size, share, number)
            sides = [("ours", ours), ("theirs", theirs)]
            for side, times in sides if number % 2 else reversed(sides):
                if side == "ours":
                    sending.sender.progress.tries.clear()
                    sending.sender.wake()
                    await sending.rested()  # nothing stands on the disk any more, as a job of QEMU's wants it
                    times.append(max(sending.sender.progress.tries, key=lambda each: each.changed).seconds)
                else:
                    times.append(await asyncio.to_thread(peer.send))
            say(f"{share >> 20} MiB: {ours[-1]:.2f} s, by blockdev-backup {theirs[-1]:.2f} s")
        ratios = [back / our for our, back in zip(ours, theirs, strict=True)]
        times = f"ours {statistics.median(ours):.2f} s, backup {statistics.median(theirs):.2f} s"
        note = f"{spread(ratios)}; {times}"
        return [Figure("cycle_vs_backup", statistics.median(ratios), "", 0.9, "higher", len(ratios), note)]
    finally:
        if peer is not None:
            peer.close()
        await sending.end()
        await vm.kill()


def _dirty(path: Path, size: int, share: int, seed: int) -> None:
    """Exactly `share` bytes, in blocks of 64 KiB at random places."""
    block = 64 * 1024
    places = random.Random(seed).sample(range(size // block), share // block)
    fd = os.open(path, os.O_RDWR)
    for each in places:
        os.pwrite(fd, os.urandom(block), each * block)
    os.fsync(fd)
    os.close(fd)


async def _resync(pair: Pair) -> list[Figure]:
    """kill -9 of QEMU while it is written to; a disk of 10 GiB, of which a part is in use."""
    size, used = 10 * _GIB, _GIB
    vm = await pair.vm("resync", size)
    argv = ["dd", "if=/dev/urandom", f"of={vm.path}", "bs=1M", f"count={used // _MIB}", "conv=notrunc"]
    await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
    sending = await pair.source.sender(vm)
    try:
        await sending.initial()
        tries = sending.sender.progress.tries
        full = max(tries, key=lambda each: each.sent)
        writer = Writer(vm.path, used, block=_BLOCK, rate=10e6, seconds=3600)
        await asyncio.sleep(3.0)
        await vm.kill()
        writer.end()
        await asyncio.sleep(1.0)  # what arrived last is counted
        tries.clear()
        await vm.launch()
        sending.sender.wake()
        await sending.until(lambda: any(not each.fault for each in tries))
        found = next(each for each in tries if not each.fault)
        copies = sending.sender.replication.full_copies
        note = f"{found.sent / _MIB:.1f} of {full.sent / _MIB:.0f} MiB sent; {copies} full copies"
        times = f"{found.seconds:.1f} s, the full copy {full.seconds:.1f} s"
        return [
            Figure("resync_bytes_ratio", found.sent / full.sent, "", None, "lower", 1, note),
            Figure("resync_time_ratio", found.seconds / full.seconds, "", None, "lower", 1, times),
        ]
    finally:
        await sending.end()
        await vm.kill()


async def _many(pair: Pair) -> list[Figure]:
    """Many VMs, a fifth of which write a little all the time."""
    before = own_memory(pair.receiver.pid)
    vms = [await pair.vm(f"vm{number}", 64 * _MIB) for number in range(pair.vms)]
    senders = [await pair.source.sender(each) for each in vms]
    writers = []
    try:
        for each in senders:
            await each.initial()
        say(f"{pair.vms} VMs are replicated")
        busy = vms[: pair.vms // 5]
        seconds = 10 + 2 * pair.seconds
        writers = [Writer(each.path, each.size, block=4096, rate=16384, seconds=seconds) for each in busy]
        await asyncio.sleep(10)
        for each in senders:
            each.sender.measure_anew()
        began = pair.processor_seconds()
        begun = time.monotonic()
        for each in writers:
            await asyncio.to_thread(each.result)
        used = (pair.processor_seconds() - began) / (time.monotonic() - begun)
        found = [each.rpo_p99() for each in senders]
        worker = pair.source.worker()
        memory = own_memory(pair.receiver.pid) - before + (own_memory(worker) if worker else 0)
        note = f"the worst VM's; of all {spread(found)}; {len(busy)} write 16 KiB/s, {used:.2f} CPUs used"
        return [
            Figure("rpo_p99_s_100vms", max(found), "s", None, "lower", len(found), note),
            Figure(
                "memory_per_vm_mib",
                memory / len(vms) / _MIB,
                "MiB",
                None,
                "lower",
                len(vms),
                "private memory of the receiver and of what ships",
            ),
        ]
    finally:
        for each in writers:
            each.end()
        await asyncio.gather(*(each.end() for each in senders))
        await asyncio.gather(*(each.kill() for each in vms))


_PARTS: dict[str, Callable[[Pair], Awaitable[list[Figure]]]] = {
    "rpo": _rpo,
    "foreground": _foreground,
    "cycle": _cycle,
    "resync": _resync,
    "many": _many,
}


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", action="append", choices=_PARTS, help="a part; may be given again")
    options.add_argument("--rounds", type=int, default=3, help="of what is measured in turns")
    options.add_argument("--seconds", type=float, default=12.0, help="of each load")
    options.add_argument("--vms", type=int, default=100, help="how many at once")
    chosen = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="hf-bench-", dir="/tmp"))
    figures: list[Figure] = []
    try:
        for name, part in _PARTS.items():
            if not chosen.only or name in chosen.only:
                say(f"{name} ...")
                figures += asyncio.run(_measured(work / name, part, chosen))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("replica", figures, chosen.json)


async def _measured(work: Path, part, chosen) -> list[Figure]:
    """Each part has a receiver of its own."""
    port = free_port()
    with live_host(work / "daemon", "--replica-listen", f"127.0.0.1:{port}") as receiver:
        token = receiver.call("POST", "/v1/replica/tokens", {"limits": {"vms": 1000}})["token"]
        source = Source(work / "source")
        try:
            await source.pair(f"https://127.0.0.1:{port}", token)
            return await part(Pair(work, source, receiver, chosen.rounds, chosen.seconds, chosen.vms))
        finally:
            await source.close()


if __name__ == "__main__":
    main(sys.argv[1:])
