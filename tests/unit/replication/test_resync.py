"""Comparing two sides: exactly what differs is found, and little is sent where little differs."""

import asyncio
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.replication.resync import (
    BLOCK,
    LEAF,
    REGION,
    Compared,
    Difference,
    FileContent,
    Hashes,
    HashTree,
    WrongAnswer,
    differences,
)
from holdfast.replication.store.replica import Replica
from holdfast.spec.units import MIB

from .source_vm import SourceVm


class Side:
    """A file, sparse, with some blocks written."""

    def __init__(self, path: Path, size: int, blocks: dict[int, bytes]) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, size)
        for block, data in blocks.items():
            os.pwrite(self.fd, data[: size - block * BLOCK], block * BLOCK)
        self.tree = HashTree(FileContent(self.fd).hashes)


async def found(ours: Hashes, theirs: Hashes, size: int, counted: Compared | None = None) -> list[Difference]:
    return [each async for each in differences(ours, theirs, size, counted)]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_exactly_what_differs_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("sides")
    size = data.draw(st.sampled_from([BLOCK, 3 * MIB + 512, REGION + 5 * BLOCK + 512, 3 * REGION]))
    blocks = -(-size // BLOCK)
    both = data.draw(st.sets(st.integers(0, blocks - 1), max_size=10))
    ours = data.draw(st.sets(st.integers(0, blocks - 1), max_size=10))
    theirs = data.draw(st.sets(st.integers(0, blocks - 1), max_size=10))
    one, other = b"1" * BLOCK, b"2" * BLOCK
    here = dict.fromkeys(both, one) | dict.fromkeys(ours, other)
    there = dict.fromkeys(both, one) | dict.fromkeys(theirs, other)
    left, right = Side(folder / "a", size, here), Side(folder / "b", size, there)
    different = {each for each in range(blocks) if here.get(each) != there.get(each)}
    result = asyncio.run(found(left.tree, right.tree, size))
    os.close(left.fd)
    os.close(right.fd)
    assert {
        block
        for each in result
        for block in range(each.offset // BLOCK, -(-(each.offset + each.length) // BLOCK))
    } == different
    ends = [each.offset + each.length for each in result]
    assert all(end < each.offset for end, each in zip(ends, result[1:], strict=False))
    assert all(end <= size for end in ends)


def test_little_is_sent_where_little_differs(tmp_path: Path) -> None:
    size, counted = 10 * REGION, Compared()
    here = {each: random.Random(each).randbytes(BLOCK) for each in range(0, size // BLOCK, 997)}
    left = Side(tmp_path / "a", size, here)
    right = Side(tmp_path / "b", size, here | {997 * 50: b"x" * BLOCK})
    result = asyncio.run(found(left.tree, right.tree, size, counted))
    assert result == [Difference(997 * 50 * BLOCK, BLOCK)]
    assert counted == Compared(size, BLOCK, 10 + REGION // LEAF + LEAF // BLOCK)


def test_a_replica_is_one_side(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    replica, source = Replica(tmp_path / "web"), SourceVm(1)
    for _ in range(5):
        source.send(replica)
    data = bytearray(source.disks["b"])
    data[3 * BLOCK] ^= 1
    (tmp_path / "b").write_bytes(data)
    with (tmp_path / "b").open("rb") as file:
        ours = HashTree(FileContent(file.fileno()).hashes)
        theirs = HashTree(lambda offset, length, block: replica.hashes("b", offset, length, block))
        assert asyncio.run(found(ours, theirs, len(data))) == [Difference(3 * BLOCK, BLOCK)]


class Liar:
    def __init__(self, side: HashTree, answer: bytes) -> None:
        self._side, self._answer = side, answer

    async def root(self, offset: int, length: int) -> bytes:
        return self._answer

    async def digests(self, offset: int, length: int, block: int) -> bytes:
        return self._answer


@pytest.mark.parametrize("answer", [b"", b"x" * 31, b"x" * 32, b"x" * 64])
def test_a_side_that_lies_is_refused(tmp_path: Path, answer: bytes) -> None:
    side = Side(tmp_path / "a", 3 * LEAF, {})
    with pytest.raises(WrongAnswer):
        asyncio.run(found(side.tree, Liar(side.tree, answer), 3 * LEAF))
