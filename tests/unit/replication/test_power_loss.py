"""Whatever was not synced may be lost or torn: acknowledged points stay, what is shown is right."""

import random
from pathlib import Path

import pytest

from holdfast.replication.store.replica import Replica

from .power_loss import PowerLost, Recording
from .source_vm import BLOCK, SourceVm, same


def run(replica: Replica, source: SourceVm, chance: random.Random, acknowledged: set[int]) -> None:
    """Cycles, some abandoned, prunings and open points; `acknowledged`: cycles that must be there."""
    token = None
    for step in range(9):
        source.send(replica)
        acknowledged.add(source.number)
        if step % 3 == 1:
            incoming = replica.begin(source.cycle())
            incoming.write("a", 0, b"gone" * (BLOCK // 4))
            incoming.abandon()
        if step % 3 == 2:
            points = replica.points()
            kept = {each.number for each in chance.sample(points, len(points) // 2)} | {points[-1].number}
            open_ones = set(replica.opened().values())
            # From here on those that go are not promised any more.
            acknowledged &= {each.cycle for each in points if each.number in kept | open_ones}
            replica.prune(kept)
        if step == 4:
            token = replica.open_point(replica.points()[-2].number).token
            acknowledged.add(replica.points()[-2].cycle)
        if step == 6 and token:
            replica.close_point(token)


def calls_of(tmp_path: Path, seed: int) -> int:
    (tmp_path / "whole").mkdir()
    files = Recording(tmp_path / "whole")
    run(Replica(tmp_path / "whole", files, None, 270 * BLOCK), SourceVm(seed), random.Random(seed), set())
    return files.calls


def lose_power(tmp_path: Path, seed: int, deaths: int) -> None:
    """At so many of the calls of one run, or at all."""
    chance = random.Random(seed)
    total = calls_of(tmp_path, seed)
    assert total > 150
    for at in chance.sample(range(1, total), min(deaths, total - 1)):
        before, after = tmp_path / f"{at}", tmp_path / f"{at}-after"
        before.mkdir()
        after.mkdir()
        files, source, acknowledged = Recording(before), SourceVm(seed), set[int]()
        files.die_at = at
        with pytest.raises(PowerLost):
            run(Replica(before, files, None, 270 * BLOCK), source, random.Random(seed), acknowledged)
        files.close()
        files.after_power_loss(after, chance)
        check(after, source, acknowledged)


@pytest.mark.parametrize("seed", [0, 1])
def test_power_lost_at_some_call(tmp_path: Path, seed: int) -> None:
    lose_power(tmp_path, seed, 20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_power_lost_at_every_call(tmp_path: Path, seed: int) -> None:
    lose_power(tmp_path, seed, 1000)


def check(folder: Path, source: SourceVm, acknowledged: set[int]) -> None:
    replica = Replica(folder, None, None, 270 * BLOCK)
    points = replica.points()
    shown = {each.cycle for each in points if not each.lost}
    assert acknowledged <= shown
    for point in points:
        assert not point.lost
        assert same(replica, source, point), point
    assert replica.verify() == ()
    # And it goes on.
    source.sent = {each.cycle: source.sent[each.cycle] for each in points}
    zeroes = {name: bytes(len(data)) for name, data in source.disks.items()}
    disks, attached = source.sent[points[-1].cycle] if points else (zeroes, {})
    source.disks = {name: bytearray(data) for name, data in disks.items()}
    source.attached = dict(attached)
    source.send(replica)
    replica.prune([])
    (point,) = [each for each in replica.points() if each.number not in replica.opened().values()][-1:]
    assert same(replica, source, point)
    replica.close()
