"""The process that turns a disk into a streamOptimized VMDK: `python -m holdfast.storage.pack_work`.

    runs of the chain ──▶ read, deflate (two threads a CPU) ──▶ in order ──▶ file
                                                                  └───────▶ digests (a thread)

Where the disk's bytes lie is given as runs in the files of its chain; nothing of qcow2 is read here but
what is compressed in it.
"""

import json
import mmap
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from holdfast.spec.units import MIB
from holdfast.storage.confined import Say, work_confined
from holdfast.storage.digests import Digests
from holdfast.storage.formats.vmdk_writer import GRAIN, VmdkWriter, deflate

RUN = struct.Struct("<QQQI")
"""Start on the disk, length, where in the file, and which of the files: numbers of bytes, and one from 0."""

_WINDOW = 2 * MIB
"""Bytes of the disk that one thread takes at once."""
_BUFFER = 4 * MIB
_MOST_THREADS = 8
_RUNS_READ = 4096
_SAY_EVERY = 0.25  # seconds

Piece = tuple[int, int, int, int]
"""Place in the window, length, place in the file, and which file."""


@dataclass(frozen=True)
class Order:
    sources: tuple[int, ...]
    """Descriptors of the chain's files."""
    runs: int
    """Descriptor of the file of runs, in the order of the disk."""
    size: int
    """Bytes of the disk."""
    target: int
    direct: int | None
    """Another descriptor of the target, opened with O_DIRECT, where its file system has that."""
    name: str
    """The VMDK's own file name."""
    content_id: int
    algorithms: tuple[str, ...]
    parent: int
    uid: int | None = None
    gid: int | None = None


class _Sink:
    """The target, written in large pieces past the page cache, and heard by the digests."""

    def __init__(self, order: Order) -> None:
        self._fd, self._direct = order.target, order.target if order.direct is None else order.direct
        self.digests = Digests(order.algorithms)
        self._buffer = mmap.mmap(-1, _BUFFER)  # as aligned as O_DIRECT wants it
        self._filled = self.written = 0

    def put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            part = rest[: _BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _BUFFER:
                self._write(self._direct)

    def finish(self) -> None:
        self._write(self._fd)
        os.fsync(self._fd)

    def _write(self, fd: int) -> None:
        done = 0
        self.digests.hear(self._buffer[: self._filled])
        with memoryview(self._buffer) as view:
            while done < self._filled:
                done += os.pwrite(fd, view[done : self._filled], self.written + done)
        self.written += done
        self._filled = 0


def run(order: Order, say: Say) -> dict[str, Any]:
    """Raises DiskTooLargeForVmdk, OSError."""
    sink = _Sink(order)
    writer = VmdkWriter(sink.put, order.size, order.name, order.content_id)
    threads = min(2 * len(os.sched_getaffinity(0)), _MOST_THREADS)
    working: deque[tuple[int, Future[list[tuple[int, bytes]]]]] = deque()
    said = 0.0

    def take() -> None:
        for index, packed in working.popleft()[1].result():
            writer.grain(index, packed)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for start, pieces in _windows(order):
                working.append((start, pool.submit(_pack, order, start, pieces)))
                while len(working) > threads + 2:
                    take()
                if time.monotonic() - said >= _SAY_EVERY:
                    said = time.monotonic()
                    say({"position": start})
            while working:
                take()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    writer.finish()
    sink.finish()
    return {"digests": sink.digests.ended(), "size": sink.written}


def _windows(order: Order) -> Iterator[tuple[int, list[Piece]]]:
    """Each stretch of the disk that has data, and where that lies."""
    current, pieces = 0, list[Piece]()
    for start, length, offset, source in _runs(order):
        while length:
            window = start // _WINDOW * _WINDOW
            if window != current and pieces:
                yield current, pieces
                pieces = []
            current = window
            count = min(length, window + _WINDOW - start)
            pieces.append((start - window, count, offset, source))
            start, offset, length = start + count, offset + count, length - count
    if pieces:
        yield current, pieces


def _runs(order: Order) -> Iterator[tuple[int, int, int, int]]:
    at = 0
    while raw := os.pread(order.runs, RUN.size * _RUNS_READ, at):
        yield from RUN.iter_unpack(raw)
        at += len(raw)


def _pack(order: Order, start: int, pieces: list[Piece]) -> list[tuple[int, bytes]]:
    """The grains of one window that are not all zero, by their numbers."""
    view = memoryview(bytearray(_WINDOW))
    for place, length, offset, source in pieces:
        done = 0
        # What lies beyond the end of a raw file is zeros.
        while done < length and (
            count := os.preadv(order.sources[source], [view[place + done : place + length]], offset + done)
        ):
            done += count
    zeros = bytes(GRAIN)
    return [
        ((start + at) // GRAIN, deflate(view[at : at + GRAIN]))
        for at in range(0, _WINDOW, GRAIN)
        if view[at : at + GRAIN] != zeros
    ]


def main() -> int:
    fields = json.load(sys.stdin)
    order = Order(
        **{**fields, "sources": tuple(fields["sources"]), "algorithms": tuple(fields["algorithms"])}
    )
    return work_confined(order.uid, order.gid, order.parent, lambda say: run(order, say))


if __name__ == "__main__":
    sys.exit(main())
