"""Open points, read by the real QEMU: the same bytes as the source had, while cycles and pruning go on."""

import json
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.replication.store.errors import PointNotFound
from holdfast.replication.store.points import OpenPoint
from holdfast.replication.store.record import Cycle
from holdfast.replication.store.replica import Replica

BLOCK = 4096
SIZE = 3 * 2**20 + 5 * BLOCK + 512  # several L2 tables, of which the last is not full


class Source:
    def __init__(self, replica: Replica, seed: int) -> None:
        self._random = random.Random(seed)
        self._replica = replica
        self.disk = bytearray(SIZE)
        self.sent: dict[int, bytes] = {}

    def cycle(self) -> None:
        number = len(self.sent) + 1
        taken = datetime.fromtimestamp(number, UTC)
        incoming = self._replica.begin(Cycle(number, taken, {"disk": SIZE}, base=number - 1))
        blocks = -(-SIZE // BLOCK)
        written = set()
        for _ in range(20):
            first, count = self._random.randrange(blocks), self._random.randint(1, 4)
            at, end = first * BLOCK, min((first + count) * BLOCK, SIZE)
            self.disk[at:end] = self._random.randbytes(16) * ((end - at) // 16)
            written |= set(range(first, first + count))
            incoming.write("disk", at, self.disk[at:end])
        first, count = self._random.randrange(blocks), self._random.choice([1, 3, 700])
        for block in range(first, min(first + count, blocks)):
            if block not in written:
                at, end = block * BLOCK, min((block + 1) * BLOCK, SIZE)
                self.disk[at:end] = bytes(end - at)
                incoming.zero("disk", at, end - at)
        incoming.commit()
        self.sent[number] = bytes(self.disk)


def as_qemu_reads(opened: OpenPoint, scratch: Path) -> bytes:
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(opened.disks["disk"].blockdev()), scratch],
        check=True,
        capture_output=True,
    )
    return scratch.read_bytes()


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    (tmp_path / "web").mkdir()
    return Replica(tmp_path / "web", largest_file=500 * BLOCK)


def test_every_point_is_read_by_qemu(replica: Replica, tmp_path: Path) -> None:
    source = Source(replica, 1)
    for _ in range(14):
        source.cycle()
    layers = set()
    for point in replica.points():
        opened = replica.open_point(point.number)
        layers.add(len(opened.disks["disk"].layers))
        assert as_qemu_reads(opened, tmp_path / "raw") == source.sent[point.cycle], point
        replica.close_point(opened.token)
    assert max(layers) >= 2  # more than one file of the journal


def test_an_open_point_stays_as_it_is(replica: Replica, tmp_path: Path) -> None:
    source = Source(replica, 2)
    for _ in range(6):
        source.cycle()
    opened = replica.open_point(4)
    for _ in range(3):
        source.cycle()
        replica.prune([])
        assert as_qemu_reads(opened, tmp_path / "raw") == source.sent[4]
    # A daemon that starts anew knows it still.
    replica.close()
    replica = Replica(tmp_path / "web", largest_file=500 * BLOCK)
    assert replica.opened() == {opened.token: 4}
    assert replica.reopened(opened.token) == opened
    for _ in range(3):
        source._replica = replica
        source.cycle()
        replica.prune([])
    again = replica.reopened(opened.token)
    assert again.disks == opened.disks
    assert as_qemu_reads(again, tmp_path / "raw") == source.sent[4]
    replica.close_point(opened.token)
    with pytest.raises(PointNotFound):
        replica.reopened(opened.token)
    replica.prune([])
    assert [each.cycle for each in replica.points()] == [12]
    assert as_qemu_reads(replica.open_point(12), tmp_path / "raw") == source.sent[12]


def test_an_overlay_takes_what_a_test_writes(replica: Replica, tmp_path: Path) -> None:
    source = Source(replica, 3)
    for _ in range(4):
        source.cycle()
    opened = replica.open_point(3)
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(SIZE)], check=True)
    chain = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(overlay)},
        "backing": opened.disks["disk"].blockdev(),
    }
    command = [
        "qemu-io",
        "json:" + json.dumps(chain),
        "-c",
        "write -P 7 8192 4096",
        "-c",
        "read -P 7 8192 4096",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "Pattern verification failed" not in done.stdout
    assert as_qemu_reads(opened, tmp_path / "raw") == source.sent[3]
