"""What a file is, by reading its headers ourselves and never by letting QEMU guess.

A guess can be steered: a raw disk whose first bytes are a qcow2 header makes a guessing program
open any file of the host that the header names. Here a file is one thing or it is refused.
"""

from collections.abc import Callable
from pathlib import Path

from holdfast.spec.image import ImageKind
from holdfast.storage.formats import plain, qcow2, vhd, vhdx, vmdk
from holdfast.storage.formats.reading import Inspection, Reader
from holdfast.storage.formats.refusals import ImageKindMismatch, ImageNotRecognized

_STARTS: tuple[tuple[bytes, Callable[[Reader], Inspection]], ...] = (
    (qcow2.MAGIC, qcow2.inspect),
    (vmdk.MAGIC, vmdk.inspect),
    (vmdk.TEXT, vmdk.refuse_text),
    (vhdx.MAGIC, vhdx.inspect),
    (vhd.COOKIE, vhd.inspect),
)
_FOREIGN = (
    (0, b"<<< ", "a VirtualBox disk (VDI)"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"QED\0", "a QED image"),
    (0, b"COWD", "a VMDK file of an old version"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar or OVA archive"),
)


def inspect(path: Path, kind: ImageKind | None = None) -> Inspection:
    """Format, kind and size of an image file. `kind` says what it must be; blocks for some ms.

    With `kind` a disk may have no partition table, and an ISO image with one may be a disk.

    Raises:
        ImageNotRecognized, ImageKindMismatch: it is nothing we know, or not of that kind.
        ImageTruncated, ImageDamaged, ImageSizeAbsurd: its headers promise what is not there.
        ImageHasBackingFile, ImageHasDataFile, ImageNamesOtherFiles: it is only a part.
        ImageEncrypted, ImageFeatureUnknown: it cannot be read.
    """
    with Reader(path) as reader:
        return inspect_reader(reader, kind)


def inspect_reader(reader: Reader, kind: ImageKind | None = None) -> Inspection:
    """As `inspect`, of a file that is open already or a part of one."""
    found = _recognized(reader, kind)
    if kind not in (None, found.kind):
        raise ImageKindMismatch(
            f"the file is of kind {found.kind} ({found.format}), not {kind}",
            value=str(kind),
            cure=f"Import it as {found.kind}, or give another file.",
        )
    return found


def _recognized(reader: Reader, kind: ImageKind | None) -> Inspection:
    head = reader.peek(0, 32)
    for start, handler in _STARTS:
        if head.startswith(start):
            return handler(reader)
    if vhd.has_footer(reader):
        return vhd.inspect(reader)
    if plain.is_kernel(reader):
        return plain.kernel(reader)
    if plain.is_iso(reader) and not (kind is ImageKind.DISK and plain.has_partitions(reader)):
        return plain.iso(reader)
    if plain.is_initrd(reader):
        return plain.initrd(reader)
    if plain.has_partitions(reader):
        return plain.raw(reader)
    foreign = next((what for at, magic, what in _FOREIGN if reader.peek(at, len(magic)) == magic), None)
    if kind is ImageKind.DISK and not foreign and reader.size % 512 == 0 and not plain.is_text(reader):
        return plain.raw(reader)
    raise _not_recognized(reader, foreign)


def _not_recognized(reader: Reader, foreign: str | None) -> ImageNotRecognized:
    what = foreign or ("empty" if not reader.size else "text" if plain.is_text(reader) else "")
    return ImageNotRecognized(
        f"the file is not an image that is known{f': it is {what}' if what else ''}",
        value=what,
        cure="Give a disk (qcow2, VMDK, VHD, VHDX, or raw with a partition table), an ISO image, a Linux"
        " kernel (bzImage) or an initial RAM disk; unpack archives first. Say `--kind disk` for a raw disk"
        " without partitions.",
    )
