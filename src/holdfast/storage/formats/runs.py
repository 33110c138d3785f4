"""Where the bytes of a file lie on a disk, for readers of file systems that a guest wrote."""

from collections.abc import Sequence

from holdfast.storage.formats.qcow2_chain import Bytes

_MOST_RUNS = 16_384

Run = tuple[int, int]
"""Where some bytes of a file lie on the disk, and how many; an offset of -1 is a hole."""


class NotReadable(ValueError):
    """No such file system, or one that contradicts itself; its text says how."""


class Runs:
    """Runs of a file in its order, with holes between them; those that lie side by side become one."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.found: list[Run] = []
        self.covered = 0

    def add(self, at: int, place: int, length: int) -> None:
        """`length` bytes of the file from `at` on lie at `place`. Raises NotReadable."""
        if at < self.covered:
            raise NotReadable("blocks that overlap")
        self._append(-1, min(at, self._wanted) - self.covered)
        self._append(place, min(length, self._wanted - self.covered))

    def _append(self, place: int, length: int) -> None:
        if length <= 0:
            return
        self.covered += length
        last, had = self.found[-1] if self.found else (-1, 0)
        if self.found and place == (last + had if last >= 0 else -1):
            self.found[-1] = last, had + length
        elif len(self.found) >= _MOST_RUNS:
            raise NotReadable("a file in too many pieces")
        else:
            self.found.append((place, length))


def content(disk: Bytes, runs: Sequence[Run]) -> bytes:
    """The bytes of all runs."""
    return b"".join(disk.read(at, length) if at >= 0 else bytes(length) for at, length in runs)
