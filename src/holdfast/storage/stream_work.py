"""The process that turns a streamOptimized VMDK into a volume: `python -m holdfast.storage.stream_work`.

    reader ──▶ inflate, write (two threads a CPU) ──▶ volume
       └─────▶ digests (a thread)                    every 64 MiB: drain ──▶ sync, mark (a thread)

It gets its order as JSON on standard input and its files as open descriptors, gives its rights up, and
says on standard output, a line of JSON each, how far it is and how it ended. It opens no file.
"""

import json
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from holdfast.spec.units import MIB
from holdfast.storage.confined import Say, work_confined
from holdfast.storage.digests import Digests
from holdfast.storage.formats.qcow2_writer import Qcow2Writer
from holdfast.storage.formats.reading import Reader
from holdfast.storage.formats.refusals import DiskLargerThanPlanned
from holdfast.storage.formats.vmdk_stream import Grain, GrainStream, Layout, inflate, layout
from holdfast.storage.marks import Mark, read_mark, write_mark

MARK_EVERY = 64 * MIB
"""Bytes of the disk between two marks."""
_MOST_THREADS = 8
"""Twice as many as CPUs up to this: one inflates while another waits for the disk."""
_SAY_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Order:
    source: int
    """Descriptor; the VMDK is its `size` bytes from `offset` on."""
    offset: int
    size: int
    name: str
    target: int
    """Descriptor of the volume, for reading and writing."""
    direct: int | None
    """Another descriptor of it, opened with O_DIRECT, where its file system has that."""
    key: str
    """Hex; names this very work: a mark of another is none."""
    volume_size: int
    """Bytes that the guest will see; the VMDK's disk may be smaller."""
    largest: int
    """Bytes that the volume's file may have."""
    algorithms: tuple[str, ...]
    """Digests wanted of the whole VMDK, by hashlib's names."""
    parent: int
    """Process id."""
    uid: int | None = None
    gid: int | None = None


class Unpacking:
    """One run over one VMDK."""

    def __init__(self, order: Order, reader: Reader, say: Say) -> None:
        self._order, self._reader, self._say = order, reader, say
        self._key = bytes.fromhex(order.key)
        self._writer = self._new_writer()
        self._zeros = b""
        self._grain = 0
        self._said = 0.0

    def run(self) -> dict[str, Any]:
        """Raises refusals as `layout`, `GrainStream.batches`, `inflate` and `Qcow2Writer.write` do."""
        found = self._layout()
        mark = self._resumed()
        digests = Digests(self._order.algorithms)
        self._catch_up(digests, mark.position)
        stream = GrainStream(self._reader, found, digests.hear)
        threads = min(2 * len(os.sched_getaffinity(0)), _MOST_THREADS)
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as syncer:
            try:
                self._convert(stream, mark, pool, syncer, threads + 2)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._writer.finish()
        os.fsync(self._order.target)
        return {"digests": digests.ended(), "resumed_at": mark.position}

    def _new_writer(self) -> Qcow2Writer:
        order = self._order
        return Qcow2Writer(order.target, order.volume_size, order.largest, order.direct)

    def _layout(self) -> Layout:
        found = layout(self._reader)
        if found.capacity > self._order.volume_size:
            raise DiskLargerThanPlanned(
                f"the disk has {found.capacity} bytes, and {self._order.volume_size} were planned",
                value=found.capacity,
                cure="Its description and the disk differ: get the files again from their source.",
            )
        self._zeros, self._grain = bytes(found.grain), found.grain
        return found

    def _resumed(self) -> Mark:
        """Where to begin: at the mark of an earlier run, if it holds."""
        mark = read_mark(self._order.target, self._key)
        if mark and mark.position <= self._order.size:
            try:
                self._writer.go_on(mark.end)
            except (OSError, ValueError):
                self._writer = self._new_writer()
            else:
                return mark
        os.ftruncate(self._order.target, 0)  # with its marks
        return Mark(0, 0, 0, 0)

    def _catch_up(self, digests: Digests, end: int) -> None:
        """What was converted already is only read for its digest."""
        position = 0
        while self._order.algorithms and position < end:
            piece = memoryview(bytearray(min(2 * MIB, end - position)))
            self._reader.read_into(position, piece, "the stream")
            digests.hear(piece)
            position += len(piece)

    def _convert(
        self,
        stream: GrainStream,
        mark: Mark,
        pool: ThreadPoolExecutor,
        syncer: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        working: deque[Future[None]] = deque()
        syncing: Future[None] | None = None
        covered, number = 0, mark.number
        for batch in stream.batches(mark.position, mark.seen):
            working.append(pool.submit(self._take, batch.grains))
            while len(working) > ahead:
                working.popleft().result()
            self._tell(batch.position)
            covered += sum(grain.length for grain in batch.grains)
            if covered >= MARK_EVERY:
                while working:
                    working.popleft().result()
                if syncing:
                    syncing.result()
                number, covered = number + 1, 0
                made = Mark(number, batch.position, batch.seen, self._writer.mark())
                syncing = syncer.submit(self._sync, made)
        for future in working:
            future.result()
        if syncing:
            syncing.result()

    def _take(self, grains: tuple[Grain, ...]) -> None:
        """Inflate and write one batch; grains of zeros are left out."""
        pieces = []
        for grain in grains:
            data = inflate(grain, self._grain)
            if data != (self._zeros if len(data) == self._grain else bytes(len(data))):
                pieces.append((grain.offset, data))
        self._writer.write(pieces)

    def _sync(self, mark: Mark) -> None:
        os.fdatasync(self._order.target)
        write_mark(self._order.target, self._key, mark)

    def _tell(self, position: int) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY:
            self._said = now
            self._say({"position": position})


def _work(order: Order, say: Say) -> dict[str, Any]:
    with Reader.within(order.source, order.offset, order.size, order.name) as reader:
        return Unpacking(order, reader, say).run()


def main() -> int:
    fields = json.load(sys.stdin)
    order = Order(**{**fields, "algorithms": tuple(fields["algorithms"])})
    return work_confined(order.uid, order.gid, order.parent, lambda say: _work(order, say))


if __name__ == "__main__":
    sys.exit(main())
