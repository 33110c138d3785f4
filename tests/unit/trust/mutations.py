"""Hostile variants of real bytes, from a seeded generator: the same seed gives the same ones."""

import random
from typing import Literal

from boots import Entry, written

_NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFF)
_KINDS = (0, 3, 4, 5, 6, 8, 0xD, 0x80000001, 0x80000003, 0x80000007, 0x80000008, 0x800000E0)


def mutated(data: bytes, source: random.Random) -> bytes:
    """One to four small changes; never the same bytes again."""
    changed = data
    while changed == data:
        for _ in range(source.choice((1, 1, 1, 2, 4))):
            changed = source.choice(_BYTES)(changed, source)
    return changed


def mutated_events(entries: list[Entry], source: random.Random) -> bytes:
    """A well-formed log whose events lie: relabelled, moved, doubled, with other data or digests."""
    found = [Entry(each.pcr, each.kind, each.digest, each.data) for each in entries]
    for _ in range(source.choice((1, 1, 2, 3))):
        place = source.randrange(len(found))
        entry = found[place]
        match source.randrange(7):
            case 0:
                entry.kind = source.choice(_KINDS)
            case 1:
                entry.data = mutated(entry.data or b"\0", source)
            case 2:
                entry.digest = source.randbytes(32)
            case 3:
                entry.pcr = source.choice((0, 4, 7, 8, 9, 14, 23))
            case 4:
                del found[place]
            case 5:
                found.insert(source.randrange(len(found)), Entry(*vars(entry).values()))
            case 6:
                other = source.randrange(len(found))
                found[place], found[other] = found[other], found[place]
        if not found:
            break
    return written(found)


def _flip(data: bytes, source: random.Random) -> bytes:
    if not data:
        return b"\0"
    place = source.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :]


def _number(data: bytes, source: random.Random) -> bytes:
    place = source.randrange(max(1, len(data)))
    size = source.choice((1, 2, 4, 8))
    number = source.choice(_NUMBERS) & (1 << 8 * size) - 1
    order: Literal["little", "big"] = source.choice(("little", "big"))
    return data[:place] + number.to_bytes(size, order) + data[place + size :]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _pad(data: bytes, source: random.Random) -> bytes:
    return data + source.choice((b"\0", b"\xff", source.randbytes(1))) * source.randrange(1, 200)


def _remove(data: bytes, source: random.Random) -> bytes:
    place = source.randrange(max(1, len(data)))
    return data[:place] + data[place + source.randrange(1, 64) :]


def _repeat(data: bytes, source: random.Random) -> bytes:
    place = source.randrange(max(1, len(data)))
    return data[:place] + data[max(0, place - source.randrange(1, 64)) :]


def _noise(data: bytes, source: random.Random) -> bytes:
    place = source.randrange(max(1, len(data)))
    noise = source.randbytes(source.randrange(1, 32))
    return data[:place] + noise + data[place + len(noise) :]


_BYTES = (_flip, _flip, _number, _number, _cut, _pad, _remove, _repeat, _noise)
