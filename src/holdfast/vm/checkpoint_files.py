"""Files of checkpoints, apart from the layers of their disks.

<VM folder>/checkpoints/<name>/memory             where it has one; of the VM's user
                              /firmware.hfstate   a container that this host's key opens
"""

import os
from pathlib import Path

from holdfast.host.files import copy_sparse, remove_tree, sync_folder

FOLDER = "checkpoints"
"""Of a VM's folder."""


def memory_file(folder: Path) -> Path:
    """Of a checkpoint's folder."""
    return folder / "memory"


def firmware_file(folder: Path) -> Path:
    """Of a checkpoint's folder; a container that this host alone opens."""
    return folder / "firmware.hfstate"


def share(source: Path, target: Path) -> None:
    """The same content under another name, in no more room where the file system can."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_sparse(source, target)
        of = source.stat()
        os.chown(target, of.st_uid, of.st_gid)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """An empty folder for a checkpoint, in place of one that was left."""
    for each in (folder.parent, folder):
        if each == folder:
            remove_tree(each)
        each.mkdir(exist_ok=True)
        each.chmod(0o711)  # the VM's user passes through
    sync_folder(folder.parent)


def stored_size(folder: Path) -> int:
    """Bytes that a checkpoint's folder takes."""
    return sum(each.stat().st_blocks * 512 for each in folder.iterdir())
