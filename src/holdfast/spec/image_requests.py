"""Requests about images, as the API and the CLI carry them."""

from pydantic import Field

from holdfast.spec.image import ImageKind
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class Upload(Frozen):
    """A file that was sent to the daemon and waits to become an image."""

    id: str
    size: int
    """Bytes."""
    sha256: str
    """64 hex digits."""


class ImageBuild(Frozen):
    recipe: str = Field(max_length=63)
    """`debian-12`, `debian-13`."""
    name: Name | None = None
    """None: the recipe's name."""


class ImagePull(Frozen):
    source: str = Field(max_length=2048)
    """A name of the catalogue or an https URL."""
    name: Name | None = None
    checksum: str | None = Field(default=None, max_length=256)
    """`sha256:` or `sha512:` and hex digits; None: what the catalogue knows."""


class ImageImport(Frozen):
    upload: str = Field(max_length=64)
    """Id of an upload; it is used up by this."""
    name: Name
    kind: ImageKind | None = None
    """None: found by inspection."""
    source: str = Field(default="", max_length=255)
    """The file's name at its sender, for people."""
