"""XML from outside: no document type, no entities, bounded in size, depth and number of elements."""

import io
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from holdfast.spec.units import MIB, format_size
from holdfast.storage.appliances.refusals import DescriptorDamaged, DescriptorTooLarge, DescriptorUnsafe

LARGEST = 4 * MIB
_DEEPEST = 64
_MOST_ELEMENTS = 100_000


def parse_xml(data: bytes, name: str) -> Element:
    """The root of a document; `name` is that of its file, for people.

    Raises:
        DescriptorTooLarge: it has more bytes, elements or levels than any descriptor needs.
        DescriptorUnsafe: it declares a document type or entities.
        DescriptorDamaged: it is not well-formed.
    """
    if len(data) > LARGEST:
        raise too_large(name, f"has {format_size(len(data))}; {format_size(LARGEST)} are read")
    depth = count = 0
    root: Element | None = None
    try:
        for event, element in iterparse(io.BytesIO(data), ("start", "end"), forbid_dtd=True):
            if event == "end":
                depth -= 1
                continue
            root = element if root is None else root
            depth, count = depth + 1, count + 1
            if depth > _DEEPEST or count > _MOST_ELEMENTS:
                raise too_large(name, f"has more than {_MOST_ELEMENTS} elements or {_DEEPEST} levels")
    except DefusedXmlException as error:
        raise DescriptorUnsafe(
            f"{name!r} declares a document type or entities, which no description of a VM needs",
            value=name,
            cure="Do not import it, unless you know who added that; export the VM again.",
        ) from error
    # expat says some damage by other errors: a character set it does not know, text that is none.
    except (ParseError, ValueError, LookupError) as error:
        raise damaged(name, str(error)) from error
    if root is None:
        raise damaged(name, "it is empty")
    return root


def damaged(name: str, what: str) -> DescriptorDamaged:
    return DescriptorDamaged(
        f"{name!r} cannot be read: {what[:200]}",
        value=name,
        cure="The file is damaged or not what it claims to be: export the VM again.",
    )


def too_large(name: str, what: str) -> DescriptorTooLarge:
    return DescriptorTooLarge(
        f"{name!r} {what}", value=name, cure="It is no description of a VM: export the VM again."
    )


def local(tag: str) -> str:
    """A name without its namespace."""
    return tag.rpartition("}")[2]


def attribute(element: Element, name: str) -> str | None:
    """An attribute by its local name: some writers leave the namespace out, others do not."""
    for key, value in element.attrib.items():
        if local(key) == name:
            return value
    return None


def child(element: Element, name: str) -> Element | None:
    """The first child of a local name."""
    return next((each for each in element if local(each.tag) == name), None)


def children(element: Element, name: str) -> list[Element]:
    return [each for each in element if local(each.tag) == name]


def text(element: Element, name: str) -> str:
    """The text of the first child of a local name; empty where there is none."""
    found = child(element, name)
    return (found.text or "").strip() if found is not None else ""
