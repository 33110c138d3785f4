"""kill -9 of the receiver, again and again: what it said to be committed is there, and right."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.replication.store.replica import Replica

from .cycles_writer import BLOCK, BLOCKS, changes


def content(number: int) -> bytes:
    disk = bytearray(BLOCKS * BLOCK)
    for each in range(1, number + 1):
        for block, data in changes(each).items():
            disk[block * BLOCK : (block + 1) * BLOCK] = data
    return bytes(disk)


def kill_often(folder: Path, times: int) -> None:
    chance, said = random.Random(times), 0
    for _ in range(times):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cycles_writer.py")), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = iter(child.stdout)
        for _ in range(chance.randint(1, 40)):
            said = int(next(lines))
        child.kill()
        said = max([said, *(int(line) for line in lines if line.endswith("\n"))])
        child.wait()
        child.stdout.close()
        replica = Replica(folder, largest_file=400 * BLOCK)
        points = replica.points()
        assert points[-1].cycle in (said, said + 1)
        assert replica.verify() == ()
        for point in points:
            assert not point.lost
            assert replica.read(point.number, "disk", 0, BLOCKS * BLOCK) == content(point.cycle)
        replica.close()
        assert not list(folder.rglob("*.new"))


def test_killed_some_times(tmp_path: Path) -> None:
    kill_often(tmp_path, 5)


@pytest.mark.slow
def test_killed_often(tmp_path: Path) -> None:
    kill_often(tmp_path, 60)
