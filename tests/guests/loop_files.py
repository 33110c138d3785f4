"""File systems in loop files: of a size and kind of the test's own, able to go away and come back."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"), "xfs": ("mkfs.xfs", "-q", "-f")}


@dataclass
class LoopFile:
    file: Path
    root: Path
    """Where it is mounted."""

    @classmethod
    def make(cls, folder: Path, kind: str, size: int) -> "LoopFile":
        """`folder` must be one that VMs' users may pass."""
        file, root = folder / f"{kind}.img", folder / kind
        with file.open("wb") as made:
            made.truncate(size)
        subprocess.run([*_MAKE[kind], file], check=True, capture_output=True)
        root.mkdir()
        self = cls(file, root)
        self.mount()
        root.chmod(0o755)
        return self

    def mount(self, *options: str) -> None:
        subprocess.run(["mount", "-o", ",".join(("loop", *options)), self.file, self.root], check=True)

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.root], check=True)

    def unmount(self) -> None:
        """Also where it is in use: what is open stays open."""
        subprocess.run(["umount", "-l", self.root], check=False, capture_output=True)

    def device(self) -> Path:
        """What it is mounted from."""
        return _said("findmnt", "-n", "-o", "SOURCE", self.root)

    def attach(self) -> Path:
        """A loop device of it that is not mounted."""
        return _said("losetup", "-f", "--show", self.file)

    def detach(self, device: Path) -> None:
        subprocess.run(["losetup", "-d", device], check=True)


def _said(*argv: str | Path) -> Path:
    return Path(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
