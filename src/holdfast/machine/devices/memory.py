"""Memory: shared memfds, and address space left free for DIMMs added later.

One memfd is the whole memory, as far as KVM takes it in one slot (8 TiB less a page, Linux,
KVM_MEM_MAX_NR_PAGES); beyond that each piece is a NUMA node of the guest.

The free space is declared, not allocated. It is kept within what the processor can address: QEMU
refuses a machine whose last address is beyond that.
"""

from holdfast.machine.devices.quoting import backend
from holdfast.spec.units import GIB, MIB, TIB
from holdfast.spec.vm import Acceleration

_BACKEND = "pc.ram"
_LARGEST_PIECE = 4 * TIB
SLOTS = 16
"""DIMMs that can be added; each keeps 1 GiB of addresses for its alignment."""
_LEAST = 16 * GIB
_SMALLEST_GROWING = 512 * MIB
"""Addresses above 4 GiB make Linux set 64 MiB aside for bounce buffers, which smaller guests cannot spare."""
_SMALLEST_HOST = 256 * GIB
"""Total that fits every 64-bit processor (39 address bits, less the holes for PCI)."""
_EMULATED = 512 * GIB
"""Total that fits the 40 address bits of an emulated processor."""


def memory(size: int, acceleration: Acceleration) -> list[str]:
    """`size` in bytes; rounded up to 1 MiB."""
    size = -(-size // MIB) * MIB
    most = _most(size, acceleration)
    spare = f",slots={SLOTS},maxmem={most // MIB}M" if most > size else ""
    parts = ["-m", f"size={size // MIB}M{spare}"]
    if size <= _LARGEST_PIECE:
        return [*parts, *_memfd(_BACKEND, size), "-machine", f"memory-backend={_BACKEND}"]
    for node, start in enumerate(range(0, size, _LARGEST_PIECE)):
        parts += _memfd(f"{_BACKEND}{node}", min(_LARGEST_PIECE, size - start))
        parts += ["-numa", f"node,nodeid={node},memdev={_BACKEND}{node}"]
    return parts


def _memfd(name: str, size: int) -> list[str]:
    return backend("memory-backend-memfd", id=name, size=size, share=True)


def _most(size: int, acceleration: Acceleration) -> int:
    """Bytes that the memory can grow to; a host that has the room for 2 x `size` can address it."""
    if size < _SMALLEST_GROWING:
        return size
    wished = max(4 * (1 << (size - 1).bit_length()), _LEAST)
    return min(wished, _EMULATED if acceleration is Acceleration.TCG else max(_SMALLEST_HOST, 2 * size))
