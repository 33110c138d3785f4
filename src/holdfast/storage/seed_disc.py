"""A NoCloud seed: the small ISO 9660 disc, labelled `cidata`, that cloud-init reads at first boot.

xorriso writes it, with no mount and no privilege. It is the writer that Debian maintains; and the
disc must be ISO 9660, for guests read no FAT file system from a CD drive's 2048-byte sectors.
The format: cloud-init documentation, "NoCloud"; Rock Ridge keeps the names' case and dashes.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from holdfast.host.files import remove_tree, sync_folder
from holdfast.host.processes import Processes
from holdfast.spec.errors import Failed
from holdfast.spec.ids import new_id

_LABEL = "cidata"
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_SECONDS = 60.0


class SeedFailed(Failed):
    id = "seed-failed"


async def write_seed_disc(processes: Processes, path: Path, files: Mapping[str, str], owner: str) -> None:
    """Write a disc of `files` (name to text) to `path`: 0600, durable, whole or not there.

    Raises:
        SeedFailed: a name is not a plain file name, or xorriso failed.
        ProgramMissing: xorriso is not installed.
    """
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise SeedFailed(f"{name!r} cannot be the name of a file on a seed disc", value=name)
    # Beside the target, so that the texts, which may hold secrets, never leave its folder.
    scratch = path.with_name(f".{path.name}.{new_id()[:8]}")
    disc = scratch / "seed.iso"
    try:
        await asyncio.to_thread(_lay_out, scratch, files)
        done = await processes.run(_command(disc, scratch / "files"), owner=owner, timeout=_SECONDS)
        if done.returncode != 0:
            raise SeedFailed(
                f"the seed disc {path} could not be written",
                value=str(path),
                cure="Read the end of xorriso's output in the detail.",
                detail={"output": done.stderr[-2000:].decode(errors="replace")},
            )
        await asyncio.to_thread(_put_in_place, disc, path)
    finally:
        await asyncio.shield(asyncio.to_thread(remove_tree, scratch))


def _command(disc: Path, folder: Path) -> list[str]:
    """xorriso(1), emulation of mkisofs: names by Rock Ridge and Joliet, all owned by root."""
    return [
        *("xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-rational-rock", "-joliet", "-no-pad"),
        *("-volid", _LABEL, "-output", str(disc), str(folder)),
    ]


def _lay_out(scratch: Path, files: Mapping[str, str]) -> None:
    scratch.mkdir(mode=0o700)
    folder = scratch / "files"
    folder.mkdir(mode=0o700)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def _put_in_place(disc: Path, path: Path) -> None:
    disc.chmod(0o600)
    with disc.open("rb") as file:
        os.fsync(file.fileno())
    disc.replace(path)
    sync_folder(path.parent)
