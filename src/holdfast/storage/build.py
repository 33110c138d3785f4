"""Building a bootable disk image from Debian's own archive: what `holdfast image build` does.

    mmdebstrap ──▶ a system's files ──▶ partition table, ext4, EFI system partition ──▶ qcow2
       0..80 %                             80..90 %                                     90..100 %

Nothing is mounted and no loop device is used: mke2fs copies a folder into the file system it makes,
and mtools writes the FAT of the EFI system partition in place. The boot chain is signed from end to
end (shim by Microsoft, GRUB and kernel by Debian), so the image starts under Secure Boot.

The caller owns `work` and `target`; nothing is kept here.
"""

import asyncio
import os
import pwd
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.host.files import sync_folder
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes, ProgramMissing
from holdfast.host.space import require_space
from holdfast.host.sub_ids import command_for_range, file_without_range
from holdfast.spec.errors import Failed, Unsupported
from holdfast.spec.units import GIB
from holdfast.storage.apt_sources import host_archives
from holdfast.storage.bootstrap import BOOT_FOLDERS, BootstrapProgress, bootstrap_command
from holdfast.storage.disk_layout import ESP, ROOT, SECTOR, SIZE, table_script
from holdfast.storage.guest_files import esp_menu, first_files, first_programs, root_files
from holdfast.storage.recipes import Recipe, recipe_named

SPACE_NEEDED = 3 * GIB
"""Bytes that a build takes in its work folder at the most."""

_SECONDS = 3600.0
_TAIL = 4000
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Features of newer mke2fs that the GRUB of an older suite cannot read.
_EXT4 = "^metadata_csum_seed,^orphan_file"
_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
    "mkfs.ext4": "e2fsprogs",
    "mformat": "mtools",
    "mmd": "mtools",
    "mcopy": "mtools",
    "qemu-img": "qemu-utils",
}
_PACKAGES_AS_USER = {**_PACKAGES, "newuidmap": "uidmap", "fakeroot": "fakeroot"}


class BuildFailed(Failed):
    id = "build-failed"


class UserNamespacesMissing(Unsupported):
    id = "user-namespaces-missing"


@dataclass(frozen=True)
class Built:
    virtual_size: int
    """Bytes of the disk that a guest sees."""


class ImageBuilder:
    def __init__(self, state: StateFolder, processes: Processes) -> None:
        self._state = state
        self._processes = processes

    async def build(
        self, recipe: str, target: Path, work: Path, owner: str, progress: Callable[[float, str], None]
    ) -> Built:
        """Build the image of `recipe` as a qcow2 at `target`: 0600, durable, whole or not there.

        `work` is an empty folder for what is half made; it takes up to `SPACE_NEEDED` bytes.
        `progress` is told a share from 0 to 1 and a few words. Takes one to three minutes.

        Raises:
            UnknownRecipe: there is no such recipe.
            ProgramMissing: a tool is not installed.
            UserNamespacesMissing: not root, and this user may not make a system's files.
            NoSpace: too little room in `work`.
            BuildFailed: a step failed; the detail holds the end of its output.
        """
        chosen = recipe_named(recipe)
        as_root = os.geteuid() == 0
        _require_programs(_PACKAGES if as_root else _PACKAGES_AS_USER)
        if not as_root:
            require_sub_ids()
        require_space(work, SPACE_NEEDED)
        run = _Build(self._processes, chosen, work, owner, as_root)
        try:
            await run.bootstrap(lambda share, text: progress(share * 0.8, text))
            progress(0.8, "making file systems")
            await run.make_disk()
            progress(0.9, "writing the image")
            await run.convert(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        progress(1.0, "image built")
        return Built(SIZE)


class _Build:
    """One build, step by step."""

    def __init__(self, processes: Processes, recipe: Recipe, work: Path, owner: str, as_root: bool) -> None:
        self._processes = processes
        self._recipe = recipe
        self._work = work
        self._owner = owner
        self._as_root = as_root
        self._root_uuid = str(uuid.uuid4())
        self._esp_serial = uuid.uuid4().hex[:8]
        self._boot = work / "boot"
        self._disk = work / "disk.raw"
        self._system = work / ("system" if as_root else "system.tar")

    async def bootstrap(self, progress: Callable[[float, str], None]) -> None:
        archives = host_archives(self._recipe.suite)
        early, late = self._work / "early", self._work / "late"
        texts = root_files(archives, self._root_uuid, self._esp_serial)

        def lay_out() -> None:
            _write_tree(early, first_files(), 0o644)
            _write_tree(early, first_programs(), 0o755)
            _write_tree(late, texts, 0o644)
            self._boot.mkdir()

        await asyncio.to_thread(lay_out)
        command = bootstrap_command(
            self._recipe, archives, self._as_root, early, late, self._boot, self._system
        )
        reader = BootstrapProgress(progress)
        await self._step("installing packages", command, on_stdout=reader.feed)

    async def make_disk(self) -> None:
        """Partition table, root file system and EFI system partition, in one sparse file."""
        await asyncio.to_thread(_make_sparse, self._disk, SIZE)
        await self._step(
            "writing the partition table",
            ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(self._disk)],
            stdin=table_script().encode(),
        )
        await self._make_root()
        await self._make_esp()

    async def _make_root(self) -> None:
        make = [
            *("mkfs.ext4", "-q", "-F", "-L", "root", "-U", self._root_uuid, "-m", "1", "-O", _EXT4),
            *("-E", f"offset={ROOT.start},assume_storage_prezeroed=1"),
        ]
        end = [str(self._disk), f"{ROOT.size // 1024}k"]
        if self._as_root:
            await self._step("making the root file system", [*make, "-d", str(self._system), *end])
            return
        # The archive's owners and devices exist for what fakeroot runs, and mke2fs writes them down.
        folder = self._work / "system"
        script = 'mkdir "$1" && tar -C "$1" -xpf "$2" && shift 2 && exec "$@"'
        unpack = ["fakeroot", "--", "sh", "-c", script, "sh", str(folder), str(self._system)]
        await self._step("making the root file system", [*unpack, *make, "-d", str(folder), *end])

    async def _make_esp(self) -> None:
        """Boot files by the names that firmware looks for on a disk it has no entry for, and Debian's own.

        No fallback program: it would write a boot entry and restart the guest.
        """
        image = f"{self._disk}@@{ESP.start}"
        shim, grub = (self._boot / folder.rpartition("/")[2] for folder in BOOT_FOLDERS)
        sources = {
            "shimx64.efi": shim / "shimx64.efi.signed",
            "mmx64.efi": shim / "mmx64.efi.signed",
            "grubx64.efi": grub / "grubx64.efi.signed",
        }
        menu = self._work / "grub.cfg"
        menu.write_text(esp_menu(self._root_uuid), encoding="ascii")
        sectors = str(ESP.size // SECTOR)
        format_it = ["mformat", "-i", image, "-T", sectors, "-h", "255", "-s", "63"]
        steps = [
            [*format_it, "-v", "ESP", "-N", self._esp_serial, "::"],
            ["mmd", "-i", image, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"],
            ["mcopy", "-i", image, str(menu), "::/EFI/debian/grub.cfg"],
        ]
        for name, source in sources.items():
            first = "BOOTX64.EFI" if name == "shimx64.efi" else name
            steps.append(["mcopy", "-i", image, str(source), f"::/EFI/BOOT/{first}"])
            steps.append(["mcopy", "-i", image, str(source), f"::/EFI/debian/{name}"])
        for step in steps:
            await self._step("making the EFI system partition", step)

    async def convert(self, target: Path) -> None:
        """As qcow2, uncompressed: a guest reads it faster, and the file is thin either way."""
        await self._step(
            "writing the image",
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self._disk), str(target)],
        )
        await asyncio.to_thread(_settle, target)

    async def _step(
        self,
        what: str,
        command: Sequence[str],
        *,
        stdin: bytes | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> None:
        done = await self._processes.run(
            command,
            owner=self._owner,
            stdin=stdin,
            timeout=_SECONDS,
            env={"PATH": _SEARCHED, "DEBIAN_FRONTEND": "noninteractive"},
            on_stdout=on_stdout,
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr)[-_TAIL:].decode(errors="replace")
            raise BuildFailed(
                f"building {self._recipe.name} failed while {what}",
                value=self._recipe.name,
                cure="Read the end of the log in the detail; check the network and the host's apt sources.",
                detail={"log": output},
            )


def _require_programs(programs: dict[str, str]) -> None:
    for program, package in programs.items():
        if shutil.which(program, path=_SEARCHED) is None:
            raise ProgramMissing(
                f"the program {program} is not installed",
                value=program,
                cure=f"Install the package `{package}`.",
            )


def require_sub_ids(root: Path = Path("/")) -> None:
    """Pass where this user has a range of ids, subuid(5): with none, no namespace can hold a system.

    Raises:
        UserNamespacesMissing: there is none; the cure is the command that gives one.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name
    lacking = file_without_range(root, user, os.geteuid())
    if lacking:
        raise UserNamespacesMissing(
            f"the user {user} has no range of ids in {lacking}, so it cannot build images",
            value=user,
            cure=f"As root: {command_for_range(user)}",
        )


def _write_tree(root: Path, texts: dict[str, str], mode: int) -> None:
    root.mkdir(exist_ok=True)
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _make_sparse(path: Path, size: int) -> None:
    with path.open("xb") as file:
        os.truncate(file.fileno(), size)


def _settle(path: Path) -> None:
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)
