"""Throughput and latency of disks on each bus, against QEMU by hand with the best-known options."""

import base64
import contextlib
import json
import math
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / each) for each in ("machines", "guests")]

from live_host import LiveHost, live_host
from small_guest import small_guest
from small_vms import small_vm, with_small_images

from bench._by_hand import ByHand
from bench._figures import Figure, parser, report, say
from bench._monitor import Monitor, agent

NAME = "bench"
BUSES = {"virtio": "vda", "scsi": "sda", "nvme": "nvme0n1"}
_MIB = 192
_SMALL = 2000
_SETTLING = 1.0  # seconds: a guest that goes on is asked how it is
_DATA = 64  # MiB
_WRITES = " ".join(str(at) for at in range(0, _MIB, _DATA))
WORK = {
    "write": f"for at in {_WRITES}; do"
    " dd of=/dev/DISK if=/run/data bs=1M seek=$at oflag=direct conv=fsync,notrunc; done",
    "read": f"dd if=/dev/DISK of=/dev/null bs=1M count={_MIB} iflag=direct",
    "write4k": f"dd of=/dev/DISK if=/run/data bs=4k count={_SMALL} oflag=direct conv=notrunc",
    "read4k": f"dd if=/dev/DISK of=/dev/null bs=4k count={_SMALL} iflag=direct",
}
"""Direct in the guest, so that each request goes through the device: large ones for throughput, small
ones, one after another, for latency. A large write counts once it is on the host's storage."""

Run = Callable[[str], str]


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=7, help="of all work on all buses, in turn")
    chosen = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="hf-bench-", dir="/tmp"))
    try:
        with live_host(work / "daemon") as host:
            figures = _measure(with_small_images(host, small_guest()), work, chosen.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("disk", figures, chosen.json)


def _measure(host: LiveHost, work: Path, rounds: int) -> list[Figure]:
    disks = [{"size": "256MiB", "bus": bus} for bus in BUSES]
    host.do("POST", "/v1/vms", small_vm(NAME, small_guest().append, disks=disks, memory="256MiB"))
    pristine = work / "pristine"
    shutil.copytree(host.state.vm(NAME), pristine, ignore=shutil.ignore_patterns("*.log"))
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    with contextlib.ExitStack() as stack:
        sides: dict[str, _Side] = {"holdfast": _Holdfast(host)}
        for cached in (False, True):
            folder = work / ("cached" if cached else "direct")
            folder.mkdir()
            (folder / "pristine").symlink_to(pristine)
            sides[folder.name] = stack.enter_context(_by_hand(host, folder, cached=cached))
        times = {side: {(bus, kind): [] for bus in BUSES for kind in WORK} for side in sides}
        for side in sides.values():
            side.run(f"dd if=/dev/urandom of=/run/data bs=1M count={_DATA} 2>/dev/null")
            side.pause()
        for number in range(rounds):
            for bus, disk in BUSES.items():
                for kind, line in WORK.items():
                    for name, side in sides.items():
                        side.resume()
                        time.sleep(_SETTLING)
                        seconds = _timed(side.run, line.replace("DISK", disk))
                        side.pause()
                        if number:  # the first round fills the layers
                            times[name][bus, kind].append(seconds)
            say(f"round {number + 1} of {rounds}")
    return _figures(times)


def _timed(run: Run, line: str) -> float:
    """Seconds by the guest's own clock."""
    clock = "cut -d' ' -f1 /proc/uptime"
    before, after = run(f"{clock}; {{ {line}; }} 2>/dev/null; {clock}").split()
    return max(float(after) - float(before), 0.01)


class _Side:
    def run(self, script: str) -> str:
        raise NotImplementedError

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError


class _Holdfast(_Side):
    def __init__(self, host: LiveHost) -> None:
        self._host = host

    def run(self, script: str) -> str:
        return self._host.run_in(NAME, script)

    def pause(self) -> None:
        self._host.call("POST", f"/v1/vms/{NAME}/pause")

    def resume(self) -> None:
        self._host.call("POST", f"/v1/vms/{NAME}/resume")


class _Hand(_Side):
    def __init__(self, work: Path) -> None:
        self._agent = work / "agent.sock"
        self._monitor = Monitor(work / "qmp.sock")

    def run(self, script: str) -> str:
        asked = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = agent(self._agent, "guest-exec", **asked)["pid"]
        while not (status := agent(self._agent, "guest-exec-status", pid=pid))["exited"]:
            time.sleep(0.05)
        return base64.b64decode(status.get("out-data", "")).decode()

    def pause(self) -> None:
        self._monitor.do("stop")

    def resume(self) -> None:
        self._monitor.do("cont")

    def close(self) -> None:
        self._monitor.close()


class _BestByHand(ByHand):
    """The same machine; its disks straight on their devices, without a filter, with the options that are
    recommended for each (QEMU, docs/system/qemu-block-drivers and the devices' own help)."""

    def tune(self, *, cached: bool) -> None:
        argv, index = [], 0
        while index < len(self._argv):
            flag = self._argv[index]
            value = self._argv[index + 1] if index + 1 < len(self._argv) else ""
            if flag in ("-blockdev", "-device", "-object") and value.startswith("{"):
                told = self._tuned(json.loads(value), cached)
                argv += [flag, json.dumps(told)] if told else []
                index += 2
            else:
                argv.append(flag)
                index += 1
        self._argv = argv

    @staticmethod
    def _tuned(told: dict[str, Any], cached: bool) -> dict[str, Any] | None:
        if told.get("driver") == "throttle" or told.get("qom-type") == "throttle-group":
            return None
        if re.fullmatch("[df]-disk[0-9]+", str(told.get("node-name", ""))):
            told["cache"] = {"direct": not cached, "no-flush": False}
            if told["driver"] == "file" and not cached and told.get("aio") == "threads":
                told["aio"] = "native"
        if str(told.get("drive", "")).startswith("th-"):
            told["drive"] = "d-" + told["drive"].removeprefix("th-")
        return told


@contextlib.contextmanager
def _by_hand(host: LiveHost, work: Path, *, cached: bool) -> Iterator[_Hand]:
    peer = _BestByHand(host.qemus()[0], host.state.vm_runtime(host.vm(NAME).id), host.state.vm(NAME), work)
    peer.tune(cached=cached)
    peer.prepare()
    try:
        peer.boot()
        side = _Hand(work)
        yield side
        side.close()
    finally:
        peer.end()


def _figures(times: dict[str, dict[tuple[str, str], list[float]]]) -> list[Figure]:
    figures = []
    for bus in BUSES:
        ratios, notes = [], []
        for kind in WORK:
            ours = statistics.median(times["holdfast"][bus, kind])
            hand = {side: statistics.median(times[side][bus, kind]) for side in ("direct", "cached")}
            best = min(hand, key=lambda side: hand[side])
            ratios.append(hand[best] / ours)
            notes.append(f"{kind} {_told(kind, ours)} against {_told(kind, hand[best])} ({best})")
        runs = len(times["holdfast"][bus, "read"])
        figures.append(Figure(f"{bus}_ratio", _mean(ratios), "", 0.97, "higher", runs, "; ".join(notes)))
    for bus in BUSES:
        small = [statistics.median(times["holdfast"][bus, kind]) for kind in ("read4k", "write4k")]
        figures.append(
            Figure(f"{bus}_latency_us", sum(small) / 2 / _SMALL * 1e6, "us", None, "lower", len(small))
        )
    fastest = min(BUSES, key=lambda bus: sum(statistics.median(times["holdfast"][bus, k]) for k in WORK))
    say(f"New disks are on virtio, which is saved, migrated and grown while it runs; fastest: {fastest}.")
    return figures


def _told(kind: str, seconds: float) -> str:
    if kind.endswith("4k"):
        return f"{seconds / _SMALL * 1e6:.0f} us"
    return f"{_MIB / seconds:.0f} MiB/s"


def _mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


if __name__ == "__main__":
    main(sys.argv[1:])
