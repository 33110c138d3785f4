"""Points of the store shown as exports: what the shipping side and the real QEMU read, and what changed."""

import random
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_open_point import BLOCK, SIZE, Source

from holdfast.replication import nbd
from holdfast.replication.point_export import BITMAP, PointExport
from holdfast.replication.store.errors import PointLost, ReplicaDamaged
from holdfast.replication.store.point_reading import PointReading
from holdfast.replication.store.record import Cycle
from holdfast.replication.store.replica import Replica


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    (tmp_path / "web").mkdir()
    return Replica(tmp_path / "web", largest_file=500 * BLOCK)


def read_all(path: Path, bitmap: str | None = None) -> tuple[bytes, list[tuple[int, int]]]:
    source = nbd.Source(path, "disk", bitmap)
    try:
        extents = source.content(0, SIZE) if bitmap is None else source.changed(0, SIZE)
        data = bytearray(SIZE)
        for offset, length in nbd.in_blocks(extents, SIZE):
            source.read([(offset, length)], memoryview(data)[offset : offset + length])
        return bytes(data), extents
    finally:
        source.close()


def test_a_pinned_point_is_read_whole_while_others_arrive_and_are_pruned(
    replica: Replica, tmp_path: Path
) -> None:
    source, path = Source(replica, 4), tmp_path / "export.sock"
    for _ in range(8):
        source.cycle()
    replica.pin("chain", [5])
    with PointExport(replica.reading(5, None), path) as export:
        assert export.disks()[0].since is None
        assert read_all(path)[0] == source.sent[5]
        for _ in range(3):
            source.cycle()
            replica.prune([])
            assert read_all(path)[0] == source.sent[5]
        image = tmp_path / "raw"
        command = ["qemu-img", "convert", "-O", "raw", f"nbd+unix:///disk?socket={path}", str(image)]
        subprocess.run(command, check=True, capture_output=True)
        assert image.read_bytes() == source.sent[5]
        # What lies before it goes into the base: nothing keeps the journal from that.
        assert [each.number for each in replica.points()] == [5, 11]
    replica.close()
    again = Replica(tmp_path / "web", largest_file=500 * BLOCK)
    assert again.pins() == {"chain": (5,)}
    again.pin("chain", [])
    again.prune([])
    assert [each.number for each in again.points()] == [11]


def test_changes_between_two_points_are_what_differs_and_nothing_is_missing(
    replica: Replica, tmp_path: Path
) -> None:
    source, path = Source(replica, 5), tmp_path / "export.sock"
    for _ in range(6):
        source.cycle()
    for before, number in ((3, 4), (2, 6), (6, 6)):
        replica.pin("chain", [before, number])
        with PointExport(replica.reading(number, before), path) as export:
            (disk,) = export.disks()
            assert (disk.since, disk.bitmap) == (before, BITMAP)
            content, extents = read_all(path, BITMAP)
        made = bytearray(source.sent[before])
        for offset, length in extents:
            made[offset : offset + length] = content[offset : offset + length]
        assert bytes(made) == source.sent[number]
    assert sum(length for _, length in extents) == 0


def test_damage_is_an_error_and_never_sent(replica: Replica, tmp_path: Path) -> None:
    source, path = Source(replica, 6), tmp_path / "export.sock"
    for _ in range(4):
        source.cycle()
    replica.pin("chain", [3, 4])
    for each in sorted((tmp_path / "web" / "journal").iterdir()):
        data = bytearray(each.read_bytes())
        for at in range(256 * BLOCK, len(data), BLOCK):
            data[at] ^= 0xFF
        each.write_bytes(data)
    with PointExport(replica.reading(4, 3), path) as export:
        with pytest.raises(nbd.SourceLost):
            read_all(path, BITMAP)
        assert isinstance(export.failure, ReplicaDamaged)
    assert replica.verify()
    with pytest.raises(PointLost):
        replica.reading(4, 3)


def test_where_something_between_two_points_was_damaged_changes_are_not_known(replica: Replica) -> None:
    source = Source(replica, 7)
    for _ in range(4):
        source.cycle()
    replica.pin("chain", [2, 4])
    assert replica.reading(4, 2).since("disk") == 2
    assert replica.reading(4, 9).since("disk") is None
    index = next(each for each in replica._holdings.spans if each.head.last == 3)
    replica._holdings.lose(index, "for this test")
    incoming = replica.begin(Cycle(9, datetime.now(UTC), {"disk": SIZE}, compared=True))
    incoming.commit()
    newest = replica.points()[-1]
    assert not newest.lost
    replica.pin("chain", [2, newest.number])
    assert isinstance(made := replica.reading(newest.number, 2), PointReading)
    assert made.since("disk") is None


def test_hostile_requests_end_their_connection_and_no_other(replica: Replica, tmp_path: Path) -> None:
    source, path = Source(replica, 8), tmp_path / "export.sock"
    source.cycle()
    replica.pin("chain", [1])
    with PointExport(replica.reading(1, None), path):
        for seed in range(20):
            with socket.socket(socket.AF_UNIX) as wrong:
                wrong.connect(str(path))
                wrong.sendall(random.Random(seed).randbytes(200))
        assert read_all(path)[0] == source.sent[1]
    assert not path.exists()
