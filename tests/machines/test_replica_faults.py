"""Whatever breaks between two hosts, and on either: nothing is lost, and nothing is copied anew.

Two daemons in network namespaces, joined by a shaped link (100 Mbit/s, 20 ms, a lost segment in a thousand),
and a guest that writes an ever increasing sequence with checksums alternately to two disks. After each fault
the receiver is killed, too, and two of its points are read: all records of both disks up to one instant are
there, none of later ones, and the newest point is no older than the RPO that was shown. The bytes on the
wire are counted: a full copy would be seen.

HOLDFAST_FAULT_MINUTES is how long the long form takes, HOLDFAST_SEED makes a run happen again as far as time
allows. What a power failure takes from a file system is not tried here but in the unit tests of the store.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_host import LiveHost
from loop_files import LoopFile
from namespaces import Peers, ip
from rough_link import RoughLink
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_replica import Pair, _content

from holdfast.replication.store.record import Point
from holdfast.replication.store.replica import Replica, ReplicaStore
from holdfast.spec.vm import VmState

NAME = "writer"
RING = 1000
_BLOCK = 4096
_MIB = 1 << 20
_NOISE = slice(6 * _MIB, 14 * _MIB)
_BOUND = 5 * _MIB
"""Bytes on the wire of one fault, and half a minute of writing; a copy of one disk has 8 MiB of noise."""
_NEAR, _FAR = "10.99.0.1", "10.99.0.2"
_PORT = 4700
FILL = f"""\
for disk in vda vdb; do
    tr '\\0' ' ' </dev/zero | dd of=/dev/$disk bs={_BLOCK} count={RING + 1} iflag=fullblock conv=notrunc,fsync
    dd if=/dev/urandom of=/dev/$disk bs=1M seek=6 count=8 conv=notrunc,fsync
done 2>/dev/null
"""
WRITER = f"""\
[ -e /run/writer ] && exit 0
touch /run/writer
cat >/run/write.sh <<'END'
n=$(dd if=/dev/vdb bs=512 count=1 2>/dev/null | cut -d' ' -f1); n=${{n:-0}}
while :; do
    n=$((n + 1))
    set -- $(echo $n | md5sum)
    printf '%-{_BLOCK}s' "$n $1" >/run/record
    for disk in vda vdb; do
        dd if=/run/record of=/dev/$disk bs={_BLOCK} seek=$((1 + n % {RING})) conv=notrunc,fsync
        dd if=/run/record of=/dev/$disk bs={_BLOCK} conv=notrunc,fsync
    done 2>/dev/null
    echo $n >/run/written.new && mv /run/written.new /run/written
done
END
setsid sh /run/write.sh >/dev/null 2>&1 </dev/null &
"""


def _record(block: bytes) -> int:
    """The number of a record; 0: none was written there yet."""
    if not (said := block.strip(b" ")):
        return 0
    number, checksum = said.split()
    assert hashlib.md5(number + b"\n").hexdigest().encode() == checksum, said
    return int(number)


def _last_of(disk: bytes) -> int:
    """The last record on a disk, all those before it being there."""
    head, *ring = (_record(disk[at : at + _BLOCK]) for at in range(0, (RING + 1) * _BLOCK, _BLOCK))
    last = max(ring)
    assert {each for each in ring if each} == set(range(max(1, last - RING + 1), last + 1)), last
    assert last - head in (0, 1), (last, head)
    return last


class Faults:
    """Everything that may happen, by its name, and what must hold afterwards."""

    def __init__(self, pair: Pair, link: RoughLink, chance: random.Random, small: SmallGuest) -> None:
        self.pair, self.link, self.chance = pair, link, chance
        self.samples: list[tuple[float, float, int]] = []
        """That a number was written at some time between the first two, in seconds since 1970."""
        self.noise: list[str] = []
        self.done: Counter[str] = Counter()
        self.read = 0
        """Points."""
        self.size = 16 * _MIB
        self.tried: dict[str, Callable[[], None]] = {
            "source killed": self.source_killed,
            "qemu killed": self.qemu_killed,
            "link cut": self.link_cut,
            "frame corrupt": self.frame_corrupt,
            "receiver full": self.receiver_full,
            "source full": self.source_full,
            "checkpoint applied": self.checkpoint_applied,
            "disk grown": self.disk_grown,
            "journal damaged": self.journal_damaged,
            "index damaged": self.index_damaged,
        }
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        pair.source.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))

    def begin(self) -> None:
        source = self.pair.source
        source.do("POST", f"/v1/vms/{NAME}/start")
        source.wait_agent(NAME)
        source.run_in(NAME, FILL)
        source.run_in(NAME, WRITER)
        source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
        self.pair.until("the initial copy", lambda status: bool(status["points"]))
        self.arrives()

    def sample(self) -> None:
        before = time.time()
        number = int(self.pair.source.run_in(NAME, "cat /run/written 2>/dev/null || echo 0") or 0)
        self.samples.append((before, time.time(), number))

    def arrives(self) -> None:
        """Points arrive of now."""
        for _ in range(2):
            self.sample()
            self.pair.until_new_points(1)
        self.sample()

    def happens(self, name: str, *, look: bool = True) -> None:
        """One fault, and what must hold after it."""
        before, begun = self._wire(), time.monotonic()
        self.tried[name]()
        self.arrives()
        if look:
            self.receiver_killed()
            self.arrives()
        wire, seconds = self._wire() - before, time.monotonic() - begun
        status = self.pair.status()
        print(f"{name}: {wire / _MIB:.2f} MiB in {seconds:.0f} s, {status['points']} points", flush=True)
        assert status["full_copies"] == 0
        assert wire < _BOUND * max(1.0, seconds / 30), name
        self.done[name] += 1

    def receiver_killed(self) -> None:
        """kill -9, at which its points are looked at."""
        self.sample()
        asked = time.time()
        rpo = self.pair.status()["rpo_seconds"]
        self.pair.receiver.kill()
        with self._replica() as replica:
            points = [each for each in replica.points() if not each.lost]
            assert points[-1] == replica.points()[-1], replica.damages()
            found = self._look(replica, points[-1])
            must = max((number for _, after, number in self.samples if after <= asked - rpo), default=0)
            assert found >= must, (found, must, rpo)
            self._look(replica, self.chance.choice(points))
        self.pair.receiver.start()

    def source_killed(self) -> None:
        self._pause(1.0)
        self.pair.source.kill()
        self._pause(2.0)
        self.pair.source.start()

    def qemu_killed(self) -> None:
        self._pause(1.0)
        for marked in self.pair.source.qemus():
            os.kill(marked.ref.pid, signal.SIGKILL)
        self.pair.source.wait_state(NAME, VmState.FAILED)
        self.samples.clear()  # the guest's own word for what is written may be ahead of its disks
        source = self.pair.source
        source.do("POST", f"/v1/vms/{NAME}/start")
        source.wait_agent(NAME)
        source.run_in(NAME, WRITER)

    def link_cut(self) -> None:
        self.link.cut_after(self.chance.randrange(20_000))
        self._until(lambda: not self.link.armed)

    def frame_corrupt(self) -> None:
        self.link.corrupt_next()
        self._until(lambda: not self.link.armed)

    def receiver_full(self) -> None:
        with _filled(self.pair.receiver.state.replicas):
            self.pair.until("there is no room", lambda status: bool(status["last_error"]))

    def source_full(self) -> None:
        with _filled(self.pair.source.state.vms):
            self._pause(6.0)

    def checkpoint_applied(self) -> None:
        source, path = self.pair.source, f"/v1/vms/{NAME}/checkpoints"
        source.do("POST", path, {"name": "before", "type": "standard"})
        self._pause(3.0)
        source.do("POST", f"{path}/before/apply", {})
        source.do("DELETE", f"{path}/before")
        self.samples.clear()  # what was written since is undone
        source.wait_agent(NAME)

    def disk_grown(self) -> None:
        self.size += _MIB
        self.pair.source.do("POST", f"/v1/vms/{NAME}/disks/disk0/grow", {"size": self.size})

    def journal_damaged(self) -> None:
        self._damaged("journal")

    def index_damaged(self) -> None:
        self._damaged("index")

    def _damaged(self, folder: str) -> None:
        """A bit of one of the newest files; with its daemon away, as a failing disk would."""
        self.pair.receiver.kill()
        files = sorted((self.pair.receiver.state.replicas / NAME / folder).iterdir())
        path = self.chance.choice(files[-3:])
        with path.open("r+b") as file:
            at = self.chance.randrange(path.stat().st_size)
            file.seek(at)
            was = file.read(1)
            file.seek(at)
            file.write(bytes([was[0] ^ 1]))
        with self._replica() as replica:
            replica.verify()
        self.pair.receiver.start()

    @contextmanager
    def _replica(self) -> Iterator[Replica]:
        replica = ReplicaStore(self.pair.receiver.state.replicas).replica(NAME)
        try:
            yield replica
        finally:
            replica.close()

    def _look(self, replica: Replica, point: Point) -> int:
        """The last record that is whole on both disks of a point."""
        opened = replica.open_point(point.number)
        try:
            disks = [_content(disk.blockdev()) for _, disk in sorted(opened.disks.items())]
        finally:
            replica.close_point(opened.token)
        first, second = (_last_of(disk) for disk in disks)
        assert first - second in (0, 1), (first, second)
        noise = [hashlib.sha256(disk[_NOISE]).hexdigest() for disk in disks]
        self.noise = self.noise or noise
        assert noise == self.noise
        taken = point.taken.timestamp()
        if self.samples and taken >= self.samples[0][0]:
            least = max((number for _, after, number in self.samples if after <= taken), default=0)
            assert second >= least, (second, least, point)
            later = [number for before, _, number in self.samples if before >= taken + 0.5]
            assert second <= min(later, default=second), (second, later, point)
        self.read += 1
        return second

    def _wire(self) -> int:
        """Bytes that went out to the receiver."""
        said: Any = json.loads(ip("-s", "-j", "link", "show", "hf-far"))
        return int(said[0]["stats64"]["tx"]["bytes"])

    def _pause(self, longest: float) -> None:
        time.sleep(self.chance.random() * longest)

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """No byte of room is left in a file system of its own."""
    ballast = folder / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(_BLOCK))
        yield
    finally:
        ballast.unlink()


@contextmanager
def _host(
    folder: Path, small_disk: str, *arguments: str, wrapper: tuple[str, ...] = ()
) -> Iterator[LiveHost]:
    """A daemon, one folder of whose state lies in a small file system of its own."""
    host = LiveHost(folder, arguments, wrapper)
    place = host.state.root / small_disk
    place.mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    disk = LoopFile(folder / "small.img", place)
    disk.file.touch()
    os.truncate(disk.file, 400 * _MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", disk.file], check=True)
    disk.mount()
    (place / "lost+found").rmdir()
    place.chmod(0o711)
    try:
        host.start()
        yield host
    finally:
        host.kill()
        for marked in host.processes.find():
            os.kill(marked.ref.pid, signal.SIGKILL)
        disk.unmount()
        host.close()


@contextmanager
def faults(peer: Peers, folder: Path, small: SmallGuest, seed: int) -> Iterator[Faults]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    far = peer.add("hf-far")
    ip("address", "add", f"{_NEAR}/24", "dev", "hf-far")
    ip("-n", far, "address", "add", f"{_FAR}/24", "dev", "eth0")
    shape = ["root", "tbf", "rate", "100mbit", "burst", "64kb", "latency", "200ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "hf-far", *shape], check=True)
    listen = ("--replica-listen", f"{_FAR}:{_PORT}")
    inside = ("ip", "netns", "exec", far)
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(_host(folder / "source", "vms"))
        receiver = opened.enter_context(_host(folder / "receiver", "replicas", *listen, wrapper=inside))
        link = RoughLink((_FAR, _PORT), chance)
        opened.callback(link.close)
        with_small_images(source, small)
        token = receiver.call("POST", "/v1/replica/tokens", {"limits": {"vms": 1}})["token"]
        address = f"https://127.0.0.1:{link.port}"
        source.call(
            "POST",
            "/v1/replica/peers",
            {"name": "south", "address": address, "token": token, "own_name": "north"},
        )
        made = Faults(Pair(source, receiver, _PORT), link, chance, small)
        made.begin()
        yield made


@pytest.mark.timeout(600)
def test_a_few_faults_lose_nothing_and_copy_nothing_anew(
    peer: Peers, tmp_path: Path, small: SmallGuest
) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "7"))
    with faults(peer, tmp_path, small, seed) as made:
        for each in (
            *("link cut", "frame corrupt", "qemu killed"),
            *("source killed", "receiver full", "journal damaged"),
        ):
            made.happens(each, look=each in ("qemu killed", "journal damaged"))
        assert made.read == 4


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_random_faults_lose_nothing_and_copy_nothing_anew(
    peer: Peers, tmp_path: Path, small: SmallGuest
) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", time.time_ns()))
    until = time.monotonic() + 60 * float(os.environ.get("HOLDFAST_FAULT_MINUTES", "30"))
    with faults(peer, tmp_path, small, seed) as made:
        while time.monotonic() < until or len(made.done) < len(made.tried):
            least = min(made.done[each] for each in made.tried)
            made.happens(made.chance.choice([each for each in made.tried if made.done[each] <= least + 1]))
        print(dict(made.done), made.read)
