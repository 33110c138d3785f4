"""The saved memory of a VM: a file that may be used once.

    memory.partial   being written; means nothing
    memory           whole; valid while the record says saved, saving or starting
    memory.used      its guest runs again (or is about to); must never be resumed a second time,
                     since the disks have moved on

The renames are durable before the step that depends on them.
"""

from pathlib import Path

from holdfast.host.files import own, sync_folder, write_atomic
from holdfast.host.processes import Identity


class MemoryImage:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.partial = folder / "memory.partial"
        self.whole = folder / "memory"
        self._used = folder / "memory.used"

    def exists(self) -> bool:
        return self.whole.exists()

    def begin(self, identity: Identity | None) -> None:
        """An empty partial file that QEMU's user may write; the folder is not that user's."""
        self.partial.unlink(missing_ok=True)
        write_atomic(self.partial, b"")
        if identity:
            own(self.partial, identity.uid, identity.gid)

    def publish(self) -> None:
        """The partial file, already written out, becomes the whole image."""
        self.partial.rename(self.whole)
        sync_folder(self._folder)

    def mark_used(self) -> None:
        """Called right before the restored guest goes on."""
        self.whole.rename(self._used)
        sync_folder(self._folder)

    def unmark(self) -> None:
        """The guest did not go on after all: the image is valid again."""
        if self._used.exists() and not self.whole.exists():
            self._used.rename(self.whole)
            sync_folder(self._folder)

    def discard(self) -> None:
        for path in (self.partial, self.whole, self._used):
            path.unlink(missing_ok=True)
