"""From `vm create` to the guest agent's answer, against the same QEMU started by hand; our own share."""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / each) for each in ("machines", "guests")]

from debian_guest import debian_vm, with_debian
from live_host import LiveHost, live_host
from small_guest import small_guest
from small_vms import small_vm, with_small_images

from bench._by_hand import ByHand
from bench._figures import Figure, parser, report, say, spread


def main(argv: list[str]) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=3, help="boots of each kind")
    options.add_argument("--starts", type=int, default=15, help="starts of each kind for the overhead")
    chosen = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="hf-bench-", dir="/tmp"))
    try:
        with live_host(work / "daemon") as host:
            overhead = _overhead(with_small_images(host, small_guest()), work, chosen.starts)
            boot = _boot(with_debian(host), work, chosen.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("boot", [*boot, overhead], chosen.json)


def _boot(host: LiveHost, work: Path, rounds: int) -> list[Figure]:
    peer = _peer(host, debian_vm("peer", start=False), work / "boot")
    ours: list[float] = []
    hand: list[float] = []
    for number in range(rounds):
        name = f"boot{number}"
        began = time.perf_counter()
        host.do("POST", "/v1/vms", debian_vm(name))
        host.wait_agent(name)
        ours.append(time.perf_counter() - began)
        host.do("DELETE", f"/v1/vms/{name}", force="true")
        peer.prepare()
        try:
            hand.append(peer.boot())
        finally:
            peer.end()
        say(f"round {number + 1}: {ours[-1]:.1f} s with Holdfast, {hand[-1]:.1f} s by hand")
    ratio = statistics.median(ours) / statistics.median(hand)
    return [
        Figure("boot_ratio", ratio, "", 1.10, "lower", rounds, "Holdfast over by hand"),
        Figure("boot_s", statistics.median(ours), "s", None, "lower", rounds, spread(ours)),
        Figure("boot_by_hand_s", statistics.median(hand), "s", None, "lower", rounds, spread(hand)),
    ]


def _overhead(host: LiveHost, work: Path, starts: int) -> Figure:
    """Our own code between the request and the guest's first instruction: all of it, less QEMU's own."""
    append = small_guest().append
    peer = _peer(host, small_vm("peer", append), work / "small")
    host.do("POST", "/v1/vms", small_vm("small", append))
    ours: list[float] = []
    hand: list[float] = []
    for _ in range(starts):
        with host.client() as client:
            began = time.perf_counter()
            client.wire("POST", "/v1/vms/small/start")
            while client.wire("GET", "/v1/vms/small")["state"] != "running":
                pass
            ours.append((time.perf_counter() - began) * 1000)
        host.call("POST", "/v1/vms/small/kill")
        peer.prepare()
        try:
            hand.append(peer.first_instruction() * 1000)
        finally:
            peer.end()
    own = statistics.median(ours) - statistics.median(hand)
    note = f"request to running {spread(ours)} ms; QEMU's own {spread(hand)} ms"
    return Figure("overhead_ms", own, "ms", 150, "lower", starts, note)


def _peer(host: LiveHost, body: dict[str, object], work: Path) -> ByHand:
    """A VM's files as they are before its first start, and the arguments that Holdfast starts it with."""
    name = str(body["name"])
    host.do("POST", "/v1/vms", body)
    pristine = work / "pristine"
    shutil.copytree(host.state.vm(name), pristine, ignore=shutil.ignore_patterns("*.log", "tpm*"))
    host.do("POST", f"/v1/vms/{name}/start")
    view = host.vm(name)
    marked = next(each for each in host.qemus() if each.owner == f"vm:{view.id}")
    peer = ByHand(marked, host.state.vm_runtime(view.id), host.state.vm(name), work)
    host.do("DELETE", f"/v1/vms/{name}", force="true")
    return peer


if __name__ == "__main__":
    main(sys.argv[1:])
