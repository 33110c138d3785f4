"""Memory: one shared memfd, and address space left free for DIMMs added later.

The free space is declared, not allocated. It is kept within what the processor can address: QEMU
refuses a machine whose last address is beyond that.
"""

from holdfast.machine.devices.quoting import backend
from holdfast.spec.units import GIB, MIB
from holdfast.spec.vm import Acceleration

BACKEND = "pc.ram"
SLOTS = 16
"""DIMMs that can be added; each keeps 1 GiB of addresses for its alignment."""
_LEAST = 16 * GIB
_SMALLEST_HOST = 256 * GIB
"""Total that fits every 64-bit processor (39 address bits, less the holes for PCI)."""
_EMULATED = 512 * GIB
"""Total that fits the 40 address bits of an emulated processor."""


def memory(size: int, acceleration: Acceleration) -> list[str]:
    """`size` in bytes; rounded up to 1 MiB."""
    size = -(-size // MIB) * MIB
    most = _most(size, acceleration)
    spare = f",slots={SLOTS},maxmem={most // MIB}M" if most > size else ""
    ram = backend("memory-backend-memfd", id=BACKEND, size=size, share=True)
    return ["-m", f"size={size // MIB}M{spare}", *ram]


def _most(size: int, acceleration: Acceleration) -> int:
    """Bytes that the memory can grow to; a host that has the room for 2 x `size` can address it."""
    wished = max(4 * (1 << (size - 1).bit_length()), _LEAST)
    return min(wished, _EMULATED if acceleration is Acceleration.TCG else max(_SMALLEST_HOST, 2 * size))
