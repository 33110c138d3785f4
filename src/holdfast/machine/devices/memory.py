"""Memory: shared memfds, and address space left free for DIMMs added later.

One memfd is the whole memory, as far as KVM takes it in one slot (8 TiB less a page, Linux,
KVM_MEM_MAX_NR_PAGES); beyond that each piece is a NUMA node of the guest.

The free space is declared, not allocated. It is kept within what the processor can address: QEMU
refuses a machine whose last address is beyond that.
"""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.quoting import backend, option
from holdfast.spec.units import GIB, MIB, TIB
from holdfast.spec.vm import Acceleration, Dimm

_BACKEND = "pc.ram"
_LARGEST_PIECE = 4 * TIB
SLOTS = 16
"""DIMMs that can be added; each keeps 1 GiB of addresses for its alignment."""
DIMM_STEP = 128 * MIB
"""What guests take memory in (Linux, MIN_MEMORY_BLOCK_SIZE of x86-64)."""
_LEAST = 16 * GIB
_SMALLEST_GROWING = 512 * MIB
"""Addresses above 4 GiB make Linux set 64 MiB aside for bounce buffers, which smaller guests cannot spare."""
_SMALLEST_HOST = 256 * GIB
"""Total that fits every 64-bit processor (39 address bits, less the holes for PCI)."""
_EMULATED = 512 * GIB
"""Total that fits the 40 address bits of an emulated processor."""


def memory(size: int, acceleration: Acceleration, dimms: Sequence[Dimm] = ()) -> list[str]:
    """`size` in bytes, with that of `dimms`; rounded up to 1 MiB."""
    size = -(-size // MIB) * MIB - sum(dimm.size for dimm in dimms)
    most = most_memory(size, acceleration)
    spare = f",slots={SLOTS},maxmem={most // MIB}M" if most > size else ""
    parts = ["-m", f"size={size // MIB}M{spare}"]
    if size <= _LARGEST_PIECE:
        parts += [*_memfd(_BACKEND, size), "-machine", f"memory-backend={_BACKEND}"]
    else:
        for node, start in enumerate(range(0, size, _LARGEST_PIECE)):
            parts += _memfd(f"{_BACKEND}{node}", min(_LARGEST_PIECE, size - start))
            parts += ["-numa", f"node,nodeid={node},memdev={_BACKEND}{node}"]
    for dimm in dimms:
        parts += option("-object", dimm_backend(dimm.slot, dimm.size))
        parts += option("-device", {**dimm_front(dimm.slot), "addr": dimm.address})
    return parts


def _memfd(name: str, size: int) -> list[str]:
    return backend("memory-backend-memfd", id=name, size=size, share=True)


def dimm_id(slot: int) -> str:
    return f"dimm{slot}"


def dimm_backend_id(slot: int) -> str:
    return f"mem-dimm{slot}"


def dimm_backend(slot: int, size: int) -> dict[str, Any]:
    """As `object-add` takes it (QAPI ObjectOptions)."""
    return {"qom-type": "memory-backend-memfd", "id": dimm_backend_id(slot), "size": size, "share": True}


def dimm_front(slot: int) -> dict[str, Any]:
    """As `device_add` takes it; without an address QEMU chooses one."""
    return {"driver": "pc-dimm", "id": dimm_id(slot), "memdev": dimm_backend_id(slot), "slot": slot}


def most_memory(size: int, acceleration: Acceleration) -> int:
    """Bytes that a memory of `size` at the start can grow to; `size` where it cannot.

    A host that has the room for 2 x `size` can address it.
    """
    if size < _SMALLEST_GROWING:
        return size
    wished = max(4 * (1 << (size - 1).bit_length()), _LEAST)
    return min(wished, _EMULATED if acceleration is Acceleration.TCG else max(_SMALLEST_HOST, 2 * size))
