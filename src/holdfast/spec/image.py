"""Images: immutable content, named by people, addressed by digest."""

from datetime import datetime
from enum import StrEnum

from holdfast.spec.model import Frozen


class ImageKind(StrEnum):
    DISK = "disk"
    ISO = "iso"
    KERNEL = "kernel"
    INITRD = "initrd"


class ImageOrigin(StrEnum):
    BUILT = "built"
    PULLED = "pulled"
    IMPORTED = "imported"


class Image(Frozen):
    """One image as it is stored. `digest` is `sha256:` and 64 hex digits of the stored file."""

    digest: str
    names: tuple[str, ...]
    """Every name that points at this content; several names may share one digest."""
    kind: ImageKind
    origin: ImageOrigin
    source: str
    """Where it came from, for people: a distribution, a URL without credentials, a file's name."""
    virtual_size: int
    """Bytes that a guest sees."""
    stored_size: int
    """Bytes on this host's disk."""
    created: datetime
