"""A real Ceph cluster of one node, from Debian's packages: a monitor, a manager, and a storage daemon.

Everything of it is in one folder, and the monitor is on the loopback address alone.
"""

import shutil
import socket
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

POOL = "vms"
_CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
mon initial members = a
public addr = 127.0.0.1
keyring = {folder}/$name.keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = bluestore
bluestore block size = 2147483648
mon data = {folder}/mon
osd data = {folder}/osd
mgr data = {folder}/mgr
[client]
admin socket =
log file =
keyring =
"""


def installed() -> bool:
    return all(shutil.which(name) for name in ("ceph-mon", "ceph-osd", "ceph-mgr", "rbd"))


class CephCluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "ceph.conf"
        self.keyring = folder / "client.holdfast.keyring"

    @classmethod
    def make(cls, folder: Path) -> "CephCluster":
        folder.mkdir(mode=0o755)
        self = cls(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fsid = str(uuid.uuid4())
        self.conf.write_text(_CONF.format(fsid=fsid, port=port, folder=folder))
        for part in ("mon", "osd", "mgr"):
            (folder / part).mkdir()
        self._make_monitor(fsid, port)
        self._keep("mgr.a", "mon", "allow *", "osd", "allow *", "mds", "allow *")
        self._daemon("ceph-mgr", "a")
        osd = str(uuid.uuid4())
        self.ceph("osd", "new", osd, "0")
        self._keep("osd.0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *")
        self._daemon("ceph-osd", "0", "--mkfs", "--osd-uuid", osd)
        self.start_storage()
        self.ceph("osd", "pool", "create", POOL, "8")
        self.ceph("osd", "pool", "application", "enable", POOL, "rbd")
        self._keep(
            "client.holdfast",
            "mon",
            "profile rbd, allow r",
            "osd",
            f"profile rbd pool={POOL}",
            "mgr",
            "allow r",
        )
        return self

    def _make_monitor(self, fsid: str, port: int) -> None:
        mon, admin, everything = self.folder / "mon.keyring", self.folder / "client.admin.keyring", "allow *"
        all_caps = ("--cap", "mon", everything, "--cap", "osd", everything, "--cap", "mgr", everything)
        _run("ceph-authtool", "--create-keyring", mon, "--gen-key", "-n", "mon.", "--cap", "mon", everything)
        _run("ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *all_caps)
        _run("ceph-authtool", mon, "--import-keyring", admin)
        address = f"[v2:127.0.0.1:{port}]"
        _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, self.folder / "monmap")
        self._daemon("ceph-mon", "a", "--mkfs", "--monmap", self.folder / "monmap", "--keyring", mon)
        self._daemon("ceph-mon", "a")

    def _daemon(self, program: str, name: str, *more: str | Path) -> None:
        _run(program, "-c", self.conf, "-i", name, *more)

    def _keep(self, name: str, *caps: str) -> None:
        text = self.ceph("auth", "get-or-create", name, *caps)
        (self.folder / f"{name}.keyring").write_text(text)

    def ceph(self, *arguments: str) -> str:
        keyring = self.folder / "client.admin.keyring"
        return _run("ceph", "--connect-timeout", "30", "-c", self.conf, "--keyring", keyring, *arguments)

    def start_storage(self) -> None:
        self._daemon("ceph-osd", "0")

    def stop_storage(self) -> None:
        """kill -9 of the storage daemon, and of nothing else."""
        self._end("osd.0", "9")

    def _end(self, name: str, number: str) -> None:
        with suppress(FileNotFoundError):
            pid = (self.folder / f"{name}.pid").read_text().strip()
            subprocess.run(["kill", f"-{number}", pid], check=False, capture_output=True)
            subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], check=False, timeout=30)

    def close(self) -> None:
        for name in ("osd.0", "mgr.a", "mon.a"):
            self._end(name, "9")


def _run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
