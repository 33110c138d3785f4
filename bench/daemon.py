"""Memory and idle CPU of the daemon with many idle VMs; listing thousands of records."""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / each) for each in ("machines", "guests")]

from live_host import LiveHost, live_host
from small_guest import small_guest
from small_vms import small_vm, with_small_images

from bench._figures import Figure, parser, percentile, report, say
from holdfast.catalog.store import Catalog
from holdfast.host.space import memory_figures
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.spec.units import GIB, MIB
from holdfast.spec.vm import Disk, Nic, VmSpec
from holdfast.vm import records

_SPARE = 3 * GIB
_SETTLE = 20.0
_AT_ONCE = 4
_TICKS = os.sysconf("SC_CLK_TCK")


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--vms", type=int, default=200, help="idle VMs to start")
    options.add_argument("--records", type=int, default=5000, help="records to list")
    options.add_argument("--idle", type=float, default=60, help="seconds over which idle CPU is measured")
    chosen = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="hf-bench-", dir="/tmp"))
    try:
        figures = [*_idle(work / "idle", chosen), *_listing(work / "list", chosen.records)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("daemon", figures, chosen.json)


def _idle(folder: Path, chosen: argparse.Namespace) -> list[Figure]:
    guest = small_guest()
    with live_host(folder) as host:
        with_small_images(host, guest)
        time.sleep(_SETTLE)
        empty_rss, empty_cpu = _rss(host.pid), _cpu_percent(host.pid, chosen.idle / 2)
        say(f"no VM: {empty_rss:.1f} MiB, {empty_cpu:.2f} % of a core")
        carried = _start_many(host, chosen.vms, guest.append)
        time.sleep(_SETTLE)
        rss, cpu = _rss(host.pid), _cpu_percent(host.pid, chosen.idle)
        say(f"{carried} VMs: {rss:.1f} MiB, {cpu:.2f} % of a core")
    per_vm = (rss - empty_rss) / max(1, carried)
    kind = "small Linux guests with an answering agent, idle"
    return [
        Figure("idle_cpu_percent", cpu, "% of a core", 1.0, "lower", 1, f"{carried} VMs; {chosen.idle:g} s"),
        Figure("vms", carried, "", 200, "higher", 1, kind),
        Figure("rss_mib_per_vm", per_vm, "MiB", None, "lower", 1, f"{empty_rss:.1f} to {rss:.1f} MiB"),
        Figure("rss_mib_empty", empty_rss, "MiB", None, "lower", 1, "the daemon with no VM"),
        Figure("idle_cpu_percent_empty", empty_cpu, "% of a core", None, "lower", 1, "with no VM"),
    ]


def _start_many(host: LiveHost, wanted: int, append: str) -> int:
    """A few at once; as many as memory allows."""
    started = 0
    while started < wanted and memory_figures()[1] > _SPARE:
        names = [f"vm{number}" for number in range(started, min(started + _AT_ONCE, wanted))]
        bodies = [small_vm(name, append, start=True) for name in names]
        begun = [host.call("POST", "/v1/vms", body) for body in bodies]
        for each in begun:
            host.end_of(Operation.model_validate(each))
        for name in names:
            host.wait_agent(name)
        started += len(names)
        if started % 20 == 0:
            say(f"{started} VMs run")
    return started


def _listing(folder: Path, count: int) -> list[Figure]:
    host = LiveHost(folder)
    host.state.prepare()
    asyncio.run(_fill(host, count))
    try:
        host.start()
        times = _list_pages(host, count)
    finally:
        host.close()
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    note = f"{count} records, 100 a page, sorted and filtered"
    return [
        Figure("list_p99_ms", p99, "ms", 20, "lower", len(times), note),
        Figure("list_p50_ms", p50, "ms", None, "lower", len(times), note),
    ]


async def _fill(host: LiveHost, count: int) -> None:
    catalog = Catalog.open(host.state.catalog)
    spec = VmSpec(
        cpus=2,
        memory=512 * MIB,
        disks=(Disk(id="disk0", volume="disk0", size=GIB),),
        nics=(Nic(id="nic0", mac="02:00:00:00:00:01"),),
    )

    def insert(start: int) -> None:
        def store(session: records.Session) -> None:
            for number in range(start, min(start + 500, count)):
                changed = spec.model_copy(update={"cpus": 1 + number % 8, "memory": (number % 64 + 1) * GIB})
                session.add(
                    records.VmRow(
                        id=new_id(),
                        name=f"{('web', 'db', 'cache', 'build')[number % 4]}-{number:05}",
                        number=number + 1,
                        state="off",
                        cpus=changed.cpus,
                        memory=changed.memory,
                        created=records.now(),
                        spec=changed.model_dump(mode="json"),
                        addresses=[],
                    )
                )

        catalog._write(store)

    for start in range(0, count, 500):
        await asyncio.to_thread(insert, start)
    catalog.close()


def _list_pages(host: LiveHost, count: int) -> list[float]:
    """Milliseconds of each page, over one connection, as a console would ask."""
    times = []
    queries: list[dict[str, object]] = [
        {"sort": "name"},
        {"sort": "-memory"},
        {"sort": "created", "filter": "web"},
        {"sort": "-cpus", "filter": "b*"},
    ]
    with host.client() as client:
        for warm in (True, False):
            for query in queries:
                for offset in range(0, count, 100):
                    began = time.perf_counter()
                    client.wire("GET", "/v1/vms", query={**query, "limit": 100, "offset": offset})
                    if not warm:
                        times.append((time.perf_counter() - began) * 1000)
                    elif offset > 1000:
                        break
    return times


def _rss(pid: int) -> float:
    """MiB that the process alone would give back (proc(5), smaps_rollup: private and its share)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu_percent(pid: int, seconds: float) -> float:
    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / _TICKS / (time.monotonic() - began) * 100


if __name__ == "__main__":
    main(sys.argv[1:])
