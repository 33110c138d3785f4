"""LVM without a device mapper: thin volumes are loop devices over sparse files, commands are the real ones.

What `lvm` is asked is what the installed one would be asked, and what it answers has the form of its
reports; qemu-img and QEMU meet real block devices.
"""

import json
import subprocess
from pathlib import Path

from holdfast.storage.pools.lvm import LvmFailed

GROUP, THIN = "vg", "thin"


class LoopLvm:
    def __init__(self, folder: Path, capacity: int) -> None:
        self.devices = folder / "dev"
        (self.devices / GROUP).mkdir(parents=True)
        self._files = folder / "volumes"
        self._files.mkdir()
        self._capacity = capacity
        self.tags: set[str] = set()
        self.asked: list[tuple[str, ...]] = []
        self.away = False

    async def run(self, *arguments: str) -> str:
        self.asked.append(arguments)
        if self.away:
            raise LvmFailed("the group is not there")
        verb, *rest = arguments
        return str(getattr(self, f"_{verb}")(*rest) or "")

    def close(self) -> None:
        for link in (self.devices / GROUP).iterdir():
            subprocess.run(["losetup", "-d", link.resolve()], check=True)

    def _lvs(self, *rest: str) -> str:
        used = {file.name: file.stat().st_blocks * 512 for file in self._files.iterdir()}
        if rest[-1] == f"{GROUP}/{THIN}":
            filled = f"{100 * sum(used.values()) / self._capacity:.2f}"
            pool = {"lv_attr": "twi-aotz--", "lv_size": str(self._capacity), "data_percent": filled}
            rows = [{**pool, "metadata_percent": "1.00", "vg_tags": ",".join(sorted(self.tags))}]
        else:
            sizes = {file.name: file.stat().st_size for file in self._files.iterdir()}
            rows = [
                {"lv_name": name, "lv_size": str(size), "data_percent": f"{100 * used[name] / size:.2f}"}
                for name, size in sizes.items()
            ] + [{"lv_name": THIN, "lv_size": str(self._capacity), "data_percent": "1.00"}]
        return json.dumps({"report": [{"lv": rows}]})

    def _vgchange(self, option: str, value: str, *_: str) -> None:
        if option == "--addtag":
            self.tags.add(value)
        elif option == "--deltag":
            self.tags.discard(value)

    def _lvcreate(self, *rest: str) -> None:
        name = rest[rest.index("--name") + 1]
        file = self._files / name
        if "--snapshot" in rest:
            source = self._files / rest[-1].partition("/")[2]
            subprocess.run(["sync", self.devices / GROUP / source.name], check=True)
            subprocess.run(["cp", "--sparse=always", source, file], check=True)
        else:
            size = int(rest[rest.index("--virtualsize") + 1].removesuffix("b"))
            with file.open("wb") as made:
                made.truncate(-(-size // (4 << 20)) * (4 << 20))
        self._attach(name)

    def _attach(self, name: str) -> None:
        done = subprocess.run(
            ["losetup", "-f", "--show", self._files / name], check=True, capture_output=True, text=True
        )
        (self.devices / GROUP / name).symlink_to(done.stdout.strip())

    def _lvremove(self, *rest: str) -> None:
        name = rest[-1].partition("/")[2]
        link = self.devices / GROUP / name
        subprocess.run(["losetup", "-d", link.resolve()], check=True)
        link.unlink()
        (self._files / name).unlink()

    def _lvrename(self, _: str, old: str, new: str) -> None:
        (self._files / old).rename(self._files / new)
        (self.devices / GROUP / old).rename(self.devices / GROUP / new)

    def _lvextend(self, *rest: str) -> None:
        name = rest[-1].partition("/")[2]
        with (self._files / name).open("r+b") as file:
            file.truncate(int(rest[rest.index("--size") + 1].removesuffix("b")))
        subprocess.run(["losetup", "-c", (self.devices / GROUP / name).resolve()], check=True)
