"""kill -9 of daemon and QEMU, at random moments of checkpoint, return, merge and move, while a guest writes.

The guest writes numbered records to two disks, the first disk first. However it is killed: the records on
each disk have no gap, the disks are of one instant, what was written before is there, every checkpoint shows
what it showed when it was made, and nothing is left over.

HOLDFAST_KILLS is how many kills, HOLDFAST_SEED makes a run happen again as far as time allows.
"""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import check_invariants, wait_noticed, wait_quiet
from layer_reading import check_nothing_left, content, files, kept_specs, own_specs
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.api.client import DaemonNotReachable
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState

NAME = "writer"
AT = f"/v1/vms/{NAME}/checkpoints"
RING = 2000
POOL = "other"
WRITER = f"""\
[ -e /run/writer ] && exit 0
touch /run/writer
cat >/run/write.sh <<'END'
n=$(dd if=/dev/vdb bs=512 count=1 2>/dev/null | cut -d' ' -f1); n=${{n:-0}}
while :; do
    n=$((n + 1))
    printf '%-512s' "$n x" >/run/record
    for disk in vda vdb; do
        dd if=/run/record of=/dev/$disk bs=512 seek=$((1 + n % {RING})) conv=notrunc,fsync
        dd if=/run/record of=/dev/$disk bs=512 conv=notrunc,fsync
    done 2>/dev/null
    echo $n >/run/written.new && mv /run/written.new /run/written
done
END
setsid sh /run/write.sh >/dev/null 2>&1 </dev/null &
"""


def newest(disk: bytes) -> int:
    """The number of the last record on a disk, all those before it being there."""
    blocks = [disk[at : at + 512] for at in range(512, (RING + 1) * 512, 512)]
    found = {int(block.split()[0]) for block in blocks if block.strip(b"\0")}
    assert all(len(block) == block.count(b"\0") or block.split()[1:] == [b"x"] for block in blocks)
    last = max(found, default=0)
    missing = set(range(max(1, last - RING + 1), last + 1)) - found
    assert not missing, f"lost: {sorted(missing)[:5]} of {last}"
    return last


def of_one_instant(disks: list[bytes]) -> int:
    """The number that the first disk has come to; the second is at most one behind."""
    first, second = (newest(disk) for disk in disks)
    assert 0 <= first - second <= 1, (first, second)
    return second


class Rig:
    """The VM, what is known of it, and what may be asked of it."""

    def __init__(self, host: LiveHost, small: SmallGuest, chance: random.Random) -> None:
        self.host = host
        self.chance = chance
        self.written = 0
        self.known: dict[str, tuple[str, int]] = {}
        """Of each checkpoint that was seen, the digest of its disks, and the record that it has come to."""
        self.done: dict[str, int] = {}
        self.serial = 0
        self.work: tuple[Callable[[], str | None], ...] = (
            self.checkpoint,
            self.checkpoint,
            self.apply,
            self.delete,
            self.delete,
            self.move,
        )
        (host.state.root.parent / POOL).mkdir(mode=0o755)
        where = {"kind": "directory", "path": str(host.state.root.parent / POOL)}
        host.call("POST", "/v1/pools", {"name": POOL, "spec": where})
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        host.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))

    def begin(self) -> None:
        """Let the guest run and write, if it does not."""
        view = self.host.vm(NAME)
        if view.state in (VmState.OFF, VmState.FAILED, VmState.SAVED):
            self.host.do("POST", f"/v1/vms/{NAME}/start")
        elif view.state is VmState.PAUSED:
            raise AssertionError("the guest was left paused")
        self.host.wait_agent(NAME)
        self.host.run_in(NAME, WRITER)

    def look(self) -> None:
        self.written = max(self.written, int(self.host.run_in(NAME, "cat /run/written || echo 0") or 0))

    # What may be asked for; each returns the id of its operation

    def checkpoint(self) -> str | None:
        if len(self.known) > 4:
            return self.delete()
        self.serial += 1
        kind = self.chance.choice(("standard", "standard", "production"))
        return self._ask("POST", AT, {"name": f"c{self.serial}", "type": kind})

    def apply(self) -> str | None:
        if not self.known:
            return self.checkpoint()
        name = self.chance.choice(sorted(self.known))
        self.written = 0
        first = self.chance.random() < 0.3
        return self._ask("POST", f"{AT}/{name}/apply", {"checkpoint_first": first})

    def delete(self) -> str | None:
        if not self.known:
            return self.checkpoint()
        name = self.chance.choice(sorted(self.known))
        subtree = str(self.chance.random() < 0.2).lower()
        return self._ask("DELETE", f"{AT}/{name}", None, subtree=subtree)

    def move(self) -> str | None:
        disk = self.chance.choice(("disk0", "disk1"))
        pool = next(each["pool"] for each in own_specs(self.host, NAME)[0]["disks"] if each["id"] == disk)
        return self._ask("POST", f"/v1/vms/{NAME}/disks/{disk}/move", {"to": "local" if pool else POOL})

    def _ask(self, method: str, path: str, body: object, **query: object) -> str | None:
        try:
            return str(self.host.call(method, path, body, **query)["id"])
        except DaemonNotReachable:
            return None
        except HoldfastError as error:
            assert error.as_dict()["id"] in ("vm-busy", "vm-in-wrong-state"), error.as_dict()
            return None

    # Kills

    def kill_qemu(self) -> None:
        for marked in self.host.qemus():
            os.kill(marked.ref.pid, signal.SIGKILL)

    def kill_daemon(self) -> None:
        self.host.kill()
        if self.chance.random() < 0.3:
            time.sleep(self.chance.random())
            self.kill_qemu()
        self.host.start()

    # What must hold

    def check(self, operation: str | None) -> None:
        wait_quiet(self.host)
        wait_noticed(self.host)
        if operation is not None:
            ended = self.host.call("GET", f"/v1/operations/{operation}")
            assert not ended["error"] or ended["error"]["id"] != "internal-error", ended
            key = f"{ended['kind']} {ended['state']}"
            self.done[key] = self.done.get(key, 0) + 1
        check_nothing_left(self.host, NAME, (POOL,))
        kept = kept_specs(self.host, NAME)
        self.known = {name: known for name, known in self.known.items() if name in kept}
        for name, specs in kept.items():
            disks = [content(self.host, NAME, disk) for disk in specs[0]["disks"]]
            digest = hashlib.sha256(b"".join(disks)).hexdigest()
            if name not in self.known:
                self.known[name] = digest, of_one_instant(disks)
            assert self.known[name][0] == digest, f"{name} was changed"
        view = self.host.vm(NAME)
        if view.state in (VmState.OFF, VmState.FAILED, VmState.SAVED):
            spec = own_specs(self.host, NAME)[0]
            last = of_one_instant([content(self.host, NAME, disk) for disk in spec["disks"]])
            assert last >= self.written, f"lost: {self.written} was written, {last} is there"


def crash(host: LiveHost, small: SmallGuest, kills: int, seed: int) -> dict[str, int]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    rig = Rig(host, small, chance)
    while kills > 0:
        rig.begin()
        time.sleep(0.3)
        rig.look()
        operation = chance.choice(rig.work)()
        for _ in range(chance.choice((1, 1, 2, 3))):
            time.sleep(chance.choice((0.02, 0.1, 0.3, 1.0, 2.0)) * chance.random())
            if chance.random() < 0.7:
                rig.kill_daemon()
            else:
                rig.kill_qemu()
            kills -= 1
        try:
            rig.check(operation)
        except AssertionError:
            for each in host.call("GET", "/v1/operations", limit=6, sort="-created")["items"]:
                print(each["kind"], each["state"], each["phase"], each["error"])
            raise
    rig.begin()
    rig.kill_qemu()
    host.wait_state(NAME, VmState.FAILED)
    for name in rig.known:
        host.do("DELETE", f"{AT}/{name}")
    rig.check(None)
    assert len(files(host, NAME, None) | files(host, NAME, POOL)) == 2
    check_invariants(host, failed=frozenset({NAME}))
    return rig.done


def test_a_few_kills_lose_nothing_and_leave_nothing(host: LiveHost, small: SmallGuest) -> None:
    done = crash(host, small, int(os.environ.get("HOLDFAST_KILLS", "6")), seed=11)
    assert done


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_a_thousand_kills_lose_nothing_and_leave_nothing(tmp_path: Path, small: SmallGuest) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", time.time_ns()))
    with live_host(tmp_path) as running:
        kills = int(os.environ.get("HOLDFAST_KILLS", "1000"))
        done = crash(with_small_images(running, small), small, kills, seed)
    print(done)
