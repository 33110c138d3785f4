"""The store against a source whose every instant is known."""

import errno
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from holdfast.host.space import NoSpace
from holdfast.replication.store.errors import (
    CycleRefused,
    DiskTooLarge,
    PointLost,
    PointNotFound,
    ReplicaBusy,
    ReplicaDamaged,
    ReplicaExists,
    ReplicaFull,
    ReplicaNotFound,
)
from holdfast.replication.store.files import Data, HostFiles
from holdfast.replication.store.replica import Replica, ReplicaStore
from holdfast.spec.names import BadName

from .source_vm import BLOCK, SourceVm, same


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path, largest_file=300 * BLOCK)


def all_same(replica: Replica, source: SourceVm) -> None:
    for point in replica.points():
        assert not point.lost
        assert same(replica, source, point), point


def test_every_point_is_what_the_source_was(replica: Replica) -> None:
    source = SourceVm(1)
    for _ in range(30):
        source.send(replica)
    assert [each.cycle for each in replica.points()] == list(range(1, 31))
    all_same(replica, source)


@pytest.mark.parametrize("seed", range(8))
def test_pruned_and_read_again_the_kept_points_are_the_same(tmp_path: Path, seed: int) -> None:
    chance, source = random.Random(seed), SourceVm(seed)
    replica = Replica(tmp_path, largest_file=280 * BLOCK)
    tokens: list[str] = []
    for _ in range(40):
        source.send(replica)
        if chance.random() < 0.3:
            numbers = [each.number for each in replica.points()]
            kept = set(chance.sample(numbers, len(numbers) // 2))
            open_ones = set(replica.opened().values())
            open_ones |= {numbers[0]} if open_ones else set()  # the base stays
            replica.prune(kept)
            assert {each.number for each in replica.points()} == kept | open_ones | {numbers[-1]}
        if chance.random() < 0.15:
            tokens.append(replica.open_point(chance.choice(replica.points()).number).token)
        elif tokens and chance.random() < 0.3:
            replica.close_point(tokens.pop())
        if chance.random() < 0.2:
            replica.close()
            replica = Replica(tmp_path, largest_file=280 * BLOCK)
        all_same(replica, source)
    assert replica.verify() == ()


def test_its_room_is_measured_while_files_go(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    SourceVm(1).send(replica)
    used, listed = replica.used(), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, given: [*listed(self, given), tmp_path / "base" / "gone"])
    assert replica.used() == used > 0


def test_what_is_pruned_gives_its_room_back(replica: Replica) -> None:
    source = SourceVm(3, {"a": 512 * BLOCK})
    for _ in range(60):
        incoming = replica.begin(source.cycle())
        data = random.randbytes(BLOCK) * 64
        source.disks["a"][: len(data)] = data
        incoming.write("a", 0, data)
        source.remember()
        incoming.commit()
    before = replica.used()
    pruned = replica.prune([])
    assert pruned.dropped == 59
    assert pruned.copied == 64 * BLOCK
    assert replica.used() < before / 20
    all_same(replica, source)
    journal = list((replica._holdings.folder / "journal").iterdir())
    assert len(journal) == 1


def test_thin_stays_thin(replica: Replica) -> None:
    size = 1 << 40
    source = SourceVm(4, {"a": BLOCK})
    for step in range(3):
        cycle = source.cycle()
        cycle.disks["a"] = size
        incoming = replica.begin(cycle)
        if step < 2:
            incoming.write("a", size - BLOCK, b"x" * BLOCK)
        else:
            incoming.zero("a", 0, size)
        source.remember()
        incoming.commit()
        replica.prune([])
    assert replica.used() < 1 << 20
    assert replica.read(3, "a", size - BLOCK, BLOCK) == bytes(BLOCK)


def test_disks_grow_shrink_come_and_go(replica: Replica) -> None:
    source = SourceVm(5)
    for change in (
        lambda disks: None,
        lambda disks: disks.update(a=disks["a"] + bytearray(8 * BLOCK)),
        lambda disks: disks.update(c=bytearray(3 * BLOCK)),
        lambda disks: disks.update(a=disks["a"][: 5 * BLOCK]),
        lambda disks: disks.pop("b"),
        lambda disks: disks.update(a=disks["a"] + bytearray(9 * BLOCK)),
        lambda disks: disks.update(b=bytearray(12 * BLOCK)),
    ):
        change(source.disks)
        source.send(replica)
    all_same(replica, source)
    replica.prune({each.number for each in replica.points()[3:]})
    all_same(replica, source)
    replica.prune([])
    all_same(replica, source)


def test_an_abandoned_cycle_leaves_nothing(replica: Replica) -> None:
    source = SourceVm(6)
    source.send(replica)
    before = replica.used()
    incoming = replica.begin(source.cycle())
    incoming.write("a", 0, bytes(4 * BLOCK))
    with pytest.raises(ReplicaBusy):
        replica.begin(source.cycle())
    incoming.abandon()
    assert replica.used() <= before + BLOCK  # an empty file of the journal may be there
    source.number = 1
    source.send(replica)
    assert len(replica.points()) == 2


def test_a_committed_cycle_cannot_be_abandoned(replica: Replica) -> None:
    source = SourceVm(24)
    for _ in range(3):
        incoming = replica.begin(source.cycle())
        source.change(incoming)
        source.remember()
        incoming.commit()
        later = replica.begin(source.cycle())
        incoming.abandon()
        with pytest.raises(ReplicaBusy):
            replica.begin(source.cycle())
        later.abandon()
        source.number -= 2
    all_same(replica, source)


def test_hashes_are_those_of_the_newest_state(replica: Replica) -> None:
    source = SourceVm(7)
    for _ in range(5):
        source.send(replica)
    data = bytes(source.disks["a"])
    want = b"".join(blake3(data[at : at + 2 * BLOCK]).digest() for at in range(0, len(data), 2 * BLOCK))
    assert replica.hashes("a", 0, len(data), 2 * BLOCK) == want
    data = bytes(source.disks["b"])
    want = b"".join(blake3(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))
    assert replica.hashes("b", 0, len(data), BLOCK) == want


@pytest.mark.parametrize(
    ("disk", "offset", "length"),
    [
        ("a", 1, BLOCK),
        ("a", 0, 100),
        ("a", 24 * BLOCK, BLOCK),
        ("x", 0, BLOCK),
        ("a", -BLOCK, BLOCK),
        ("a", 0, 0),
    ],
)
def test_writes_that_do_not_fit_are_refused(replica: Replica, disk: str, offset: int, length: int) -> None:
    for _ in range(2):  # the first cycle goes another way than those after it
        source = SourceVm(8)
        source.number = len(replica.points())
        source.sent = {source.number: ({}, {})} if source.number else {}
        incoming = replica.begin(source.cycle())
        with pytest.raises(CycleRefused):
            incoming.write(disk, offset, bytes(length))
        with pytest.raises(CycleRefused):
            incoming.zero(disk, offset, length)
        incoming.commit()


def test_what_is_both_written_and_zeroed_is_refused(replica: Replica) -> None:
    source = SourceVm(8)
    for _ in range(2):
        incoming = replica.begin(source.cycle())
        incoming.write("a", 2 * BLOCK, bytes(3 * BLOCK))
        incoming.zero("a", 4 * BLOCK, 2 * BLOCK)
        with pytest.raises(CycleRefused):
            incoming.commit()
        incoming.abandon()
        source.number -= 1
        source.send(replica)
    assert [each.cycle for each in replica.points()] == [1, 2]
    all_same(replica, source)


def test_a_full_copy_over_what_is_there_hides_it(replica: Replica) -> None:
    source = SourceVm(21)
    for _ in range(4):
        source.send(replica)
    source.disks = {name: bytearray(len(data)) for name, data in source.disks.items()}
    source.attached = {}
    sent, source.sent = source.sent, {}
    source.send(replica)
    source.sent |= sent
    point = replica.points()[-1]
    disks, _ = source.sent[5]
    assert replica.read(point.number, "a", 0, len(disks["a"])) == disks["a"]
    replica.prune([])
    assert replica.read(point.number, "a", 0, len(disks["a"])) == disks["a"]


def test_what_lies_beyond_a_smaller_size_is_refused(replica: Replica) -> None:
    source = SourceVm(22)
    source.send(replica)
    incoming = replica.begin(source.cycle())
    incoming.write("a", 20 * BLOCK, bytes(BLOCK))
    incoming.resize("a", 10 * BLOCK)
    with pytest.raises(CycleRefused):
        incoming.write("a", 10 * BLOCK, bytes(BLOCK))
    with pytest.raises(CycleRefused):
        incoming.commit()
    incoming.abandon()
    source.number = 1
    del source.disks["a"][10 * BLOCK :]
    incoming = replica.begin(source.cycle())
    incoming.resize("a", 10 * BLOCK)
    source.remember()
    incoming.commit()
    all_same(replica, source)


def test_a_comparison_says_nothing_of_what_is_alike(replica: Replica) -> None:
    source = SourceVm(23)
    for _ in range(3):
        source.send(replica)
    cycle = source.cycle(compared=True)
    incoming = replica.begin(replace(cycle, base=0))
    for name, content in source.attached.items():
        incoming.attach(name, content)
    source.remember()
    incoming.commit()
    all_same(replica, source)


def test_cycles_that_do_not_follow_are_refused(replica: Replica) -> None:
    source = SourceVm(9)
    source.send(replica)
    source.send(replica)
    source.sent.pop(2)  # says that it changes cycle 1
    with pytest.raises(CycleRefused) as refused:
        replica.begin(source.cycle())
    assert refused.value.id == "replica-cycle-refused"
    source.disks["../up"] = bytearray(BLOCK)
    with pytest.raises(BadName):
        replica.begin(source.cycle(compared=True))
    del source.disks["../up"]
    with pytest.raises(DiskTooLarge):
        replica.begin(type(source.cycle())(9, source.cycle().taken, {"a": 9 << 40}, compared=True))
    assert len(replica.points()) == 2


def test_no_more_room_than_allowed(tmp_path: Path) -> None:
    replica = Replica(tmp_path, room=40 * BLOCK)
    source = SourceVm(10)
    source.send(replica)
    incoming = replica.begin(source.cycle())
    with pytest.raises(ReplicaFull):
        for _ in range(3):
            incoming.write("a", 0, bytes(20 * BLOCK))
    incoming.abandon()
    assert len(replica.points()) == 1


class FullDisk(HostFiles):
    full = False

    def write(self, path: Path, offset: int, data: Data) -> None:
        if self.full:
            super().write(path, offset, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "full")
        super().write(path, offset, data)


def test_a_full_disk_costs_the_cycle_only(tmp_path: Path) -> None:
    files, source = FullDisk(), SourceVm(11)
    replica = Replica(tmp_path, files)
    for _ in range(3):
        source.send(replica)
    incoming = replica.begin(source.cycle())
    incoming.write("a", 0, b"y" * BLOCK)
    files.full = True
    with pytest.raises(NoSpace):
        incoming.commit()
    incoming.abandon()
    files.full = False
    source.number = 3
    source.send(replica)
    replica.close()
    replica = Replica(tmp_path)
    assert len(replica.points()) == 4
    all_same(replica, source)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lost(replica: Replica) -> list[int]:
    return [each.number for each in replica.points() if each.lost]


def test_a_damaged_index_costs_points_until_a_comparison(tmp_path: Path) -> None:
    source = SourceVm(12)
    replica = Replica(tmp_path)
    for _ in range(6):
        source.send(replica)
    replica.close()
    names = sorted((tmp_path / "index").glob("*-*"))
    damage(names[2], -50)  # cycle 4, in its head
    replica = Replica(tmp_path)
    assert [each.number for each in replica.points()] == [1, 2, 3, 5, 6]
    assert lost(replica) == [5, 6] and replica.must_compare()
    with pytest.raises(PointLost):
        replica.open_point(5)
    for number in (1, 2, 3):
        replica.open_point(number)
        assert same(replica, source, replica.points()[number - 1])
    mend(replica, source)
    assert lost(replica) == [5, 6] and not replica.must_compare()
    source.send(replica)
    for token in replica.opened():
        replica.close_point(token)
    replica.prune([3, 7])
    replica.close()
    replica = Replica(tmp_path)
    all_same(replica, source)
    replica.prune([7])
    all_same(replica, source)
    replica.prune([])
    all_same(replica, source)
    assert replica.damages() == ()


def mend(replica: Replica, source: SourceVm) -> None:
    """What a comparison leads to: a cycle with all blocks that differ, and all attachments."""
    incoming = replica.begin(source.cycle(compared=True))
    for name, data in source.disks.items():
        whole = len(data) // BLOCK * BLOCK
        for at in [*range(0, whole, BLOCK), *([whole] if whole < len(data) else [])]:
            block = bytes(data[at : at + BLOCK])
            if replica.hashes(name, at, len(block), BLOCK) != blake3(block).digest():
                incoming.write(name, at, block)
    for name, content in source.attached.items():
        incoming.attach(name, content)
    source.remember()
    incoming.commit()


def test_the_newest_index_damaged_is_a_missing_cycle(tmp_path: Path) -> None:
    source = SourceVm(13)
    replica = Replica(tmp_path)
    for _ in range(4):
        source.send(replica)
    replica.close()
    damage(max((tmp_path / "index").glob("*-*")), 0)
    replica = Replica(tmp_path)
    assert [each.number for each in replica.points()] == [1, 2, 3]
    assert lost(replica) == [] and replica.must_compare()
    mend(replica, source)
    assert not replica.must_compare()
    assert [each.number for each in replica.points()] == [1, 2, 3, 5]
    all_same(replica, source)


def test_damaged_data_is_found_and_costs_points_until_it_is_overwritten(tmp_path: Path) -> None:
    source = SourceVm(14)
    replica = Replica(tmp_path)
    source.send(replica)
    for blocks in (4, 1, 1, 4, 1):
        incoming = replica.begin(source.cycle())
        data = random.randbytes(blocks * BLOCK)
        source.disks["a"][: len(data)] = data
        incoming.write("a", 0, data)
        source.remember()
        incoming.commit()
    damage(tmp_path / "journal/000001", 256 * BLOCK + 2 * BLOCK + 9)  # block 2 of cycle 2
    (found,) = replica.verify()
    assert (found.first, found.until, found.disks) == (2, 5, ("a",))
    assert lost(replica) == [2, 3, 4]
    with pytest.raises(ReplicaDamaged):
        # What a person may insist on is still refused when its blocks would go into the base.
        replica._holdings.damages = ()
        replica.prune([3])
    assert lost(replica) == [3]
    replica.prune([])
    all_same(replica, source)


def test_both_bases_say_what_the_base_is(tmp_path: Path) -> None:
    source = SourceVm(15)
    replica = Replica(tmp_path)
    for _ in range(5):
        source.send(replica)
    replica.prune([3, 4])
    replica.close()
    damage(tmp_path / "index/base", 3)
    replica = Replica(tmp_path)
    assert [each.number for each in replica.points()] == [3, 4, 5]
    all_same(replica, source)
    replica.close()
    damage(tmp_path / "index/base.copy", 3)
    replica = Replica(tmp_path)
    assert lost(replica) == [4, 5] and replica.must_compare()


def test_a_copy_that_was_interrupted_goes_on_by_comparing(tmp_path: Path) -> None:
    source = SourceVm(16)
    replica = Replica(tmp_path)
    incoming = replica.begin(source.cycle())
    source.disks["a"][:BLOCK] = b"1" * BLOCK
    incoming.write("a", 0, b"1" * BLOCK)
    incoming.write("a", BLOCK, b"2" * BLOCK)
    incoming.abandon()
    assert replica.points() == () and replica.must_compare()
    mend(replica, source)
    assert replica.points()[0].received == BLOCK  # the one block that was not the source's any more
    all_same(replica, source)


def test_a_copy_begun_anew_forgets_the_one_before(tmp_path: Path) -> None:
    source = SourceVm(17)
    replica = Replica(tmp_path)
    incoming = replica.begin(source.cycle())
    incoming.write("b", 0, b"2" * BLOCK)
    incoming.abandon()
    source.send(replica)
    all_same(replica, source)


def test_everything_at_once(tmp_path: Path) -> None:
    """Cycles arrive while one thread prunes and another opens points and reads them."""
    replica, source, ended = Replica(tmp_path, largest_file=400 * BLOCK), SourceVm(18), threading.Event()
    failures: list[BaseException] = []

    def prune() -> None:
        chance = random.Random(1)
        while not ended.is_set():
            replica.prune({each.number for each in replica.points() if chance.random() < 0.7})

    def read() -> None:
        chance, read = random.Random(2), 0
        while not ended.is_set() or not read:
            try:
                opened = replica.open_point(chance.choice(replica.points()).number)
            except PointNotFound:  # it was pruned meanwhile
                continue
            point = next(each for each in replica.points() if each.number == opened.number)
            assert same(replica, source, point)
            replica.close_point(opened.token)
            read += 1

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    source.send(replica)
    threads = [threading.Thread(target=guarded, args=(work,)) for work in (prune, read)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        source.send(replica)
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures
    all_same(replica, source)
    assert replica.verify() == ()


def test_cycles_with_much_in_them_are_put_in_order_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.replication.store.incoming._SPILLED", 8)
    monkeypatch.setattr("holdfast.replication.store.incoming._GATHERED", 3 * BLOCK)
    monkeypatch.setattr("holdfast.replication.store.index._WINDOW", 5)
    replica, source = Replica(tmp_path), SourceVm(19, {"a": 3000 * BLOCK})
    source.send(replica)
    for _ in range(4):
        incoming = replica.begin(source.cycle())
        for _ in range(60):
            at, data = random.randrange(2990) * BLOCK, random.randbytes(BLOCK)
            source.disks["a"][at : at + BLOCK] = data
            incoming.write("a", at, data)
        source.remember()
        incoming.commit()
        assert not list(tmp_path.rglob("*.new"))
    all_same(replica, source)
    replica.prune([3])
    all_same(replica, source)


def test_a_damaged_body_is_noticed_before_it_is_believed(tmp_path: Path) -> None:
    source, replica = SourceVm(20), Replica(tmp_path)
    for _ in range(4):
        source.send(replica)
    replica.close()
    damage(sorted((tmp_path / "index").glob("*-*"))[1], 9)  # cycle 3, a block's number
    replica = Replica(tmp_path)
    with pytest.raises(PointLost):
        replica.open_point(4)
    assert lost(replica) == [4] and [each.number for each in replica.points()] == [1, 2, 4]
    assert same(replica, source, replica.points()[1])


def test_replicas_have_folders_with_their_names(tmp_path: Path) -> None:
    store = ReplicaStore(tmp_path)
    replica = store.create("web 1")
    assert store.replica("web 1") is replica
    assert store.names() == ["web 1"]
    with pytest.raises(ReplicaExists):
        store.create("Web 1")
    with pytest.raises(ReplicaNotFound):
        store.replica("db")
    for name in ("../web 1", "", "a/b"):
        with pytest.raises(BadName):
            store.create(name)
        with pytest.raises(BadName):
            store.remove(name)
    store.remove("web 1")
    assert store.names() == []
