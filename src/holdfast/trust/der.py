"""A reader of DER (ITU-T X.690, chapter 10) for hostile input: bounded, forward only, nothing copied twice.

Only what signatures of images need: definite lengths, one-byte tags. Every step checks that what it
returns lies inside what it was given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

SEQUENCE, SET, OCTETS, OID, INTEGER = 0x30, 0x31, 0x04, 0x06, 0x02
_MAX_CHILDREN = 4096


@dataclass(frozen=True)
class Element:
    tag: int
    whole: bytes
    """Tag, length and content."""
    content: bytes

    def children(self) -> Iterator["Element"]:
        """Raises ValueError where the content is no run of elements, or one of more than 4096."""
        position = 0
        for _ in range(_MAX_CHILDREN):
            if position == len(self.content):
                return
            child = read(self.content, position)
            yield child
            position += len(child.whole)
        raise ValueError("too many elements")

    def expect(self, tag: int) -> "Element":
        if self.tag != tag:
            raise ValueError(f"tag {self.tag:#x} instead of {tag:#x}")
        return self

    def list(self, tag: int, least: int) -> "list[Element]":
        """The children of an element of this kind. Raises ValueError where there are fewer than `least`."""
        found = [*self.expect(tag).children()]
        if len(found) < least:
            raise ValueError("an element is missing")
        return found


def read(data: bytes, at: int = 0) -> Element:
    """The element of `data` that begins at byte `at`. Raises ValueError where there is none that is whole."""
    if len(data) < at + 2 or data[at] & 0x1F == 0x1F:
        raise ValueError("no element")
    length, start = data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(data) < start + count:
            raise ValueError("a length that cannot be")
        length, start = int.from_bytes(data[start : start + count], "big"), start + count
    if start + length > len(data):
        raise ValueError("an element is cut off")
    return Element(data[at], data[at : start + length], data[start : start + length])


def oid(element: Element) -> str:
    """An OBJECT IDENTIFIER in dots."""
    content = element.expect(OID).content
    if not 1 <= len(content) <= 64 or content[-1] & 0x80:
        raise ValueError("no object identifier")
    arcs, value = [], 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
