"""How long a guest stands still for a checkpoint, and how long it takes, against the same done by hand."""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / each) for each in ("machines", "guests")]

from live_host import LiveHost, live_host
from small_guest import small_guest
from small_vms import small_vm, with_small_images

from bench._by_hand import ByHand
from bench._figures import Figure, parser, percentile, report, say, spread
from bench._monitor import Monitor, agent

NAME = "bench"
KINDS = ("production", "standard")
_OPTIONS = "compat=1.1,cluster_size=128k,extended_l2=on"
_SIZE = "64MiB"
_WRITER = """\
cat >/run/write.sh <<'END'
while :; do for disk in vda vdb; do
    dd if=/dev/urandom of=/dev/$disk bs=64k count=4 seek=$(($(date +%s) % 200)) conv=notrunc,fsync
done; done 2>/dev/null
END
setsid sh /run/write.sh >/dev/null 2>&1 </dev/null &
"""


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=20, help="checkpoints of each kind")
    chosen = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="hf-bench-", dir="/tmp"))
    try:
        with live_host(work / "daemon") as host:
            figures = _measure(with_small_images(host, small_guest()), work / "hand", chosen.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("checkpoint", figures, chosen.json)


def _measure(host: LiveHost, work: Path, rounds: int) -> list[Figure]:
    """Both write all the time; while one is measured, the other is paused."""
    disks = [{"size": _SIZE}, {"size": _SIZE}]
    host.do("POST", "/v1/vms", small_vm(NAME, small_guest().append, disks=disks, cpus=1))
    pristine = work / "pristine"
    shutil.copytree(host.state.vm(NAME), pristine, ignore=shutil.ignore_patterns("*.log"))
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    host.run_in(NAME, _WRITER)
    marked = host.qemus()[0]
    peer = ByHand(marked, host.state.vm_runtime(host.vm(NAME).id), host.state.vm(NAME), work)
    peer.prepare()
    ours: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    hand: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    try:
        with _by_hand(peer, work, any("io_uring" in part for part in marked.argv)) as other:
            for number in range(rounds):
                for kind in KINDS:
                    ours[kind].append(_ours(host, kind, number))
                    hand[kind].append(other.checkpoint(host, kind))
                    pair = f"{_ms(ours[kind][-1])} with Holdfast, {_ms(hand[kind][-1])} by hand"
                    say(f"{kind} {number + 1}: {pair}")
    finally:
        peer.end()
    return [figure for kind in KINDS for figure in _figures(kind, ours[kind], hand[kind])]


def _ms(measured: tuple[float, float]) -> str:
    return f"{measured[0] * 1000:.1f} ms of {measured[1]:.2f} s"


def _ours(host: LiveHost, kind: str, number: int) -> tuple[float, float]:
    """Seconds that the guest stood still, and from the request to the end of the operation."""
    time.sleep(0.5)
    path = f"/v1/vms/{NAME}/checkpoints"
    asked = "production-only" if kind == "production" else kind
    began = time.perf_counter()
    done = host.do("POST", path, {"name": f"{kind}-{number}", "type": asked})
    total = time.perf_counter() - began
    assert done.result is not None
    host.do("DELETE", f"{path}/{kind}-{number}")
    return float(done.result["stall_seconds"]), total


class _Hand:
    """The same sequence, as the manuals of QEMU tell it, in a QEMU of the same arguments."""

    def __init__(self, monitor: Monitor, work: Path, aio: str) -> None:
        """`aio`: of the disks, as they were opened."""
        self._monitor = monitor
        self._work = work
        self._aio = aio

    def checkpoint(self, host: LiveHost, kind: str) -> tuple[float, float]:
        host.call("POST", f"/v1/vms/{NAME}/pause")
        self._monitor.do("cont")
        time.sleep(0.5)
        self._monitor.events.clear()
        try:
            began = time.perf_counter()
            actions = self._overlays()
            (self._production if kind == "production" else self._standard)(actions)
            total = time.perf_counter() - began
            return self._monitor.stall(), total
        finally:
            self._merge()
            self._monitor.do("stop")
            host.call("POST", f"/v1/vms/{NAME}/resume")

    def _overlays(self) -> list[dict[str, Any]]:
        actions = []
        for disk in ("disk0", "disk1"):
            path = self._work / f"{disk}-new.qcow2"
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", _OPTIONS, str(path), _SIZE[:-2]]
            subprocess.run(argv, check=True)
            file = {"driver": "file", "node-name": f"f-new-{disk}", "filename": str(path)}
            self._monitor.do("blockdev-add", **file, discard="unmap")
            self._monitor.do(
                "blockdev-add",
                driver="qcow2",
                node_name=f"d-new-{disk}",
                file=f"f-new-{disk}",
                backing=None,
                discard="unmap",
            )
            data = {"node": f"d-{disk}", "overlay": f"d-new-{disk}"}
            actions.append({"type": "blockdev-snapshot", "data": data})
        return actions

    def _below(self, disk: str) -> list[dict[str, Any]]:
        """The layer below, to be opened for writing again."""
        path, shared = self._work / "vm" / f"{disk}.qcow2", {"read-only": False, "discard": "unmap"}
        file = {"driver": "file", "node-name": f"f-{disk}", "filename": str(path), "aio": self._aio, **shared}
        qcow2 = {"driver": "qcow2", "node-name": f"d-{disk}", "file": f"f-{disk}", "backing": None, **shared}
        return [file, {**qcow2, "detect-zeroes": "unmap"}]

    def _production(self, actions: list[dict[str, Any]]) -> None:
        agent(self._work / "agent.sock", "guest-fsfreeze-freeze")
        self._monitor.do("stop")
        self._monitor.do("transaction", actions=actions)
        self._monitor.do("cont")
        agent(self._work / "agent.sock", "guest-fsfreeze-thaw")

    def _standard(self, actions: list[dict[str, Any]]) -> None:
        monitor, target = self._monitor, self._work / "memory"
        target.unlink(missing_ok=True)
        names = ("events", "pause-before-switchover", "mapped-ram")
        wanted = [{"capability": name, "state": True} for name in names]
        monitor.do("migrate-set-capabilities", capabilities=wanted)
        monitor.do("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=30)
        monitor.do("migrate", uri=f"file:{target}")
        monitor.until("MIGRATION", status="pre-switchover")
        monitor.do("transaction", actions=actions)
        monitor.do("migrate-continue", state="pre-switchover")
        monitor.until("MIGRATION", status="completed")
        while monitor.do("query-status")["status"] == "finish-migrate":
            pass
        monitor.do("cont")
        subprocess.run(["sync", "-d", str(target)], check=True)

    def _merge(self) -> None:
        """Back to one layer a disk, so that each round begins as the first."""
        for disk in ("disk0", "disk1"):
            for node in self._below(disk):
                self._monitor.do("blockdev-reopen", options=[node])
            self._monitor.do(
                "block-commit",
                job_id=f"merge-{disk}",
                device=f"th-{disk}",
                top_node=f"d-new-{disk}",
                base_node=f"d-{disk}",
            )
            self._monitor.until("BLOCK_JOB_READY", device=f"merge-{disk}")
            self._monitor.do("job-complete", id=f"merge-{disk}")
            self._monitor.until("BLOCK_JOB_COMPLETED", device=f"merge-{disk}")
            for node in (f"d-new-{disk}", f"f-new-{disk}"):
                self._monitor.do("blockdev-del", node_name=node)


@contextlib.contextmanager
def _by_hand(peer: ByHand, work: Path, uring: bool) -> Iterator[_Hand]:
    peer.boot()
    monitor = Monitor(work / "qmp.sock")
    script = {"path": "/bin/sh", "arg": ["-c", _WRITER]}
    agent(work / "agent.sock", "guest-exec", **script)
    monitor.do("stop")
    try:
        yield _Hand(monitor, work, "io_uring" if uring else "threads")
    finally:
        monitor.close()


def _figures(kind: str, ours: list[tuple[float, float]], hand: list[tuple[float, float]]) -> list[Figure]:
    stalls, by_hand = ([each[0] * 1000 for each in part] for part in (ours, hand))
    totals, hand_totals = ([each[1] for each in part] for part in (ours, hand))
    runs = len(ours)
    ratio = statistics.median(stalls) / statistics.median(by_hand)
    what = "guest stopped, Holdfast over by hand (medians); by hand each command is waited for"
    return [
        Figure(f"stall_ratio_{kind}", ratio, "", 1.10, "lower", runs, what),
        Figure(f"stall_{kind}_p50_ms", percentile(stalls, 0.5), "ms", None, "lower", runs, spread(stalls)),
        Figure(f"stall_{kind}_p99_ms", percentile(stalls, 0.99), "ms", None, "lower", runs),
        Figure(
            f"stall_{kind}_by_hand_p50_ms",
            percentile(by_hand, 0.5),
            "ms",
            None,
            "lower",
            runs,
            spread(by_hand),
        ),
        Figure(f"stall_{kind}_by_hand_p99_ms", percentile(by_hand, 0.99), "ms", None, "lower", runs),
        Figure(f"total_{kind}_s", statistics.median(totals), "s", None, "lower", runs, spread(totals)),
        Figure(
            f"total_{kind}_by_hand_s",
            statistics.median(hand_totals),
            "s",
            None,
            "lower",
            runs,
            spread(hand_totals),
        ),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
