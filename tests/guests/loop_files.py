"""File systems in loop files: of a size and kind of the test's own, able to go away and come back."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"), "xfs": ("mkfs.xfs", "-q", "-f")}


@dataclass
class LoopFile:
    file: Path
    root: Path
    """Where it is mounted."""
    options: tuple[str, ...] = ()
    """That `lose_power` mounts it with again."""

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

    def lose_power(self) -> None:
        """What was not synced is gone; nothing may run there. Mounted with `commit=...`, so that nothing is
        written by itself."""
        left = self.file.with_suffix(".left")
        subprocess.run(["cp", "--sparse=always", self.file, left], check=True)
        subprocess.run(["umount", self.root], check=True)
        left.rename(self.file)
        self.mount(*self.options)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile whoever writes to it waits, and only that."""
        subprocess.run(["fsfreeze", "-f", self.root], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "-u", self.root], check=True)

    def device(self) -> Path:
        """What it is mounted from."""
        return _said("findmnt", "-n", "-o", "SOURCE", self.root)

    def attach(self) -> Path:
        """A loop device of it that is not mounted."""
        return _said("losetup", "-f", "--show", self.file)

    def detach(self, device: Path) -> None:
        subprocess.run(["losetup", "-d", device], check=True)


@dataclass
class LoopDevice:
    """A block device of a file, with nothing on it."""

    file: Path
    path: Path

    @classmethod
    def make(cls, file: Path, size: int, *options: str) -> "LoopDevice":
        with file.open("wb") as made:
            made.truncate(size)
        return cls(file, _said("losetup", *options, "-f", "--show", file))

    def part(self, number: int, start: int, size: int) -> Path:
        """A partition of it, in bytes, which only the kernel knows of."""
        argv = ["addpart", self.path, str(number), str(start // 512), str(size // 512)]
        subprocess.run(argv, check=True)
        return Path(f"{self.path}p{number}")

    def close(self) -> None:
        for part in Path("/sys/class/block", self.path.name).glob("*/partition"):
            number = part.read_text().strip()
            subprocess.run(["delpart", self.path, number], check=False, capture_output=True)
        subprocess.run(["losetup", "-d", self.path], check=False, capture_output=True)


def _said(*argv: str | Path) -> Path:
    return Path(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
