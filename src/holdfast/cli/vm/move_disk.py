"""`holdfast vm move-disk`: as `holdfast disk move`."""

from holdfast.cli.disk.move import command

EXAMPLE = "holdfast vm move-disk web disk0 --bus virtio"

__all__ = ["EXAMPLE", "command"]
