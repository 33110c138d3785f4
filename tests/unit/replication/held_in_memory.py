"""What a receiver holds of a VM, in memory."""

from collections.abc import Callable

from blake3 import blake3

from holdfast.replication.wire import Ask, Begin, DiskShape, Standing
from holdfast.spec.errors import HoldfastError


class Held:
    """A VM in memory."""

    def __init__(self, disks: tuple[DiskShape, ...], cycle: int = 0) -> None:
        self.cycle = cycle
        self.images = {disk.id: bytearray(disk.size) for disk in disks}
        self.attachments: dict[str, bytes] = {}
        self.dropped = 0
        self.failure: HoldfastError | None = None

    def standing(self) -> Standing:
        return Standing(cycle=self.cycle)

    def digests(self, asked: Ask) -> bytes:
        part = bytes(self.images[asked.disk][asked.offset : asked.offset + asked.length])
        block = asked.block or 65536
        found = b"".join(blake3(part[at : at + block]).digest() for at in range(0, len(part), block))
        return found if asked.block else blake3(found).digest()

    def begin(self, begin: Begin) -> "Arriving":
        return Arriving(self, begin)


class Arriving:
    def __init__(self, held: Held, begin: Begin) -> None:
        self.held, self.cycle = held, begin.cycle
        self.changes: list[Callable[[], None]] = []

    def write(self, disk: str, offset: int, data: memoryview) -> None:
        if self.held.failure:
            raise self.held.failure
        kept, image = bytes(data), self.held.images[disk]
        self.changes.append(lambda: image.__setitem__(slice(offset, offset + len(kept)), kept))

    def zero(self, disk: str, offset: int, length: int) -> None:
        image = self.held.images[disk]
        self.changes.append(lambda: image.__setitem__(slice(offset, offset + length), bytes(length)))

    def attach(self, name: str, data: bytes) -> None:
        self.changes.append(lambda: self.held.attachments.__setitem__(name, data))

    def commit(self) -> None:
        for change in self.changes:
            change()
        self.held.cycle, self.changes = self.cycle, []

    def abandon(self) -> None:
        self.held.dropped += bool(self.changes)
