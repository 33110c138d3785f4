"""VMs without a guest, replicated for real: QEMUs of no machine with the disks of one, and the daemon's own
`Sender` for each.

A disk is written to through QEMU's FUSE export of the node that a device would be on, so every write passes
what a guest's passes but the device itself.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench._monitor import Monitor
from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import VmRow
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.machine.change_maps import ChangeMaps
from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.disk_snapshot import DiskSnapshot
from holdfast.qmp.session import QmpSession
from holdfast.replication import identity
from holdfast.replication.attachments import Attachments
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.pairing import PairingToken, PeerBook, pair_with
from holdfast.replication.peering import parse_address
from holdfast.replication.replicating import Means
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.sending import Sender, Vm
from holdfast.replication.writing_out import WritingOut
from holdfast.spec.attachment import Layer
from holdfast.spec.replica import ReplicaEnable
from holdfast.spec.vm import Disk, KernelBoot, VmSpec
from holdfast.vm.rest import Rest

_OPTIONS = "compat=1.1,cluster_size=128k,extended_l2=on"
_PEER = "south"


@dataclass
class _Machine:
    """What `Sender` and `Capture` use of a `RunningMachine`."""

    layers: DiskLayers
    change_maps: ChangeMaps
    snapshot: DiskSnapshot


class SyntheticVm:
    """One QEMU with one disk; `path` is the disk, to be written to."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.name, self.size = folder, name, size
        self.id = str(uuid.uuid4())
        self.path = folder / "written"
        self.path.touch()
        self.image = folder / "disk0.qcow2"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", _OPTIONS, str(self.image), str(size)]
        subprocess.run(argv, check=True)
        self.machine: _Machine | None = None
        self.pid: int | None = None
        disk = Disk(id="disk0", volume="disk0", size=size)
        self.spec = VmSpec(cpus=1, memory=1 << 27, boot=KernelBoot(kernel="none"), disks=(disk,))

    async def launch(self) -> None:
        argv = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"]
        argv += ["-object", "throttle-group,id=tg-disk0", "-object", "iothread,id=io0"]
        file = f"driver=file,node-name=f-disk0,filename={self.image},discard=unmap"
        argv += ["-blockdev", file]
        argv += ["-blockdev", "driver=qcow2,node-name=d-disk0,file=f-disk0,discard=unmap,detect-zeroes=unmap"]
        node = "driver=throttle,node-name=th-disk0,file=d-disk0,throttle-group=tg-disk0,discard=unmap"
        argv += ["-blockdev", node]
        for each in ("ours", "bench"):
            argv += ["-qmp", f"unix:{self.folder / each},server=on,wait=off"]
        argv += ["-daemonize", "-pidfile", str(self.folder / "pid")]
        await asyncio.to_thread(subprocess.run, argv, check=True)
        self.pid = int((self.folder / "pid").read_text())
        self.monitor = await asyncio.to_thread(Monitor, self.folder / "bench")
        self.session = await QmpSession.connect(self.folder / "ours")
        export = {"type": "fuse", "id": "w", "node-name": "th-disk0", "mountpoint": str(self.path)}
        await self.session.execute("block-export-add", {**export, "writable": True, "iothread": "io0"})
        session = self.session
        layers = DiskLayers(session, io_uring=False)
        self.machine = _Machine(layers, ChangeMaps(session), DiskSnapshot(session))

    def look(self) -> Vm:
        """As a sender is given it."""
        return Vm(
            self.id,
            self.name,
            self.spec,
            self.machine,  # type: ignore[arg-type]  # what a sender uses of one
            runtime=self.folder,
            folder=self.folder,
            started=None,
            rest=Rest(_never),
            quiesce=None,  # type: ignore[arg-type]  # no guest is brought to rest
        )

    async def kill(self) -> None:
        """kill -9."""
        self.machine = None
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = None
            await self.session.close()
            self.monitor.close()
            argv = ["umount", "-l", str(self.path)]
            await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True)
            for each in ("ours", "bench", "replica.sock"):
                (self.folder / each).unlink(missing_ok=True)

    def resident(self) -> int:
        """Bytes of memory that are QEMU's own."""
        assert self.pid is not None
        return own_memory(self.pid)


async def _never() -> None:
    """It is not at rest."""


class Source:
    """A host that sends, without a daemon around it."""

    def __init__(self, folder: Path) -> None:
        for each in ("state", "run", "keys"):
            (folder / each).mkdir(parents=True)
        self.folder = folder
        state = StateFolder(folder / "state", folder / "run")
        self._catalog = Catalog.open(folder / "catalog.sqlite")
        events = EventLog(self._catalog)
        self._identity = identity.load_or_make(folder / "keys")
        self._peers = PeerBook(self._catalog, events)
        self.book = ReplicationBook(self._catalog, events)
        self.processes = Processes(state)
        self.dispatch = Dispatch(self.processes)
        attachments = Attachments(None)  # type: ignore[arg-type]  # no firmware here
        sent = (self._peers, self.book, self.dispatch, attachments, events)
        # The disks of its VMs are not looked at while they are off.
        self._images: dict[str, Path] = {}
        writing = WritingOut(lambda name, disk: (Layer.of_file(self._images[name], "qcow2", disk.id),))
        self._means = Means(self._identity, "north", *sent, None, writing=writing)  # type: ignore[arg-type]
        self._numbers = 0

    async def pair(self, address: str, token: str) -> None:
        found = await asyncio.to_thread(
            pair_with,
            parse_address(address),
            PairingToken.parse(token),
            self._identity,
            ours="north",
            name=_PEER,
        )
        await self._peers.add(found)

    async def sender(self, vm: SyntheticVm, rpo: float = 1.0) -> "Sending":
        replication = Replication(
            id=str(uuid.uuid4()),
            vm=vm.id,
            settings=ReplicaEnable(peer=_PEER, rpo_seconds=rpo, points="all:10m"),
            enabled=aware(now()),
        )
        self._numbers += 1
        row = VmRow(
            id=vm.id,
            name=vm.name,
            number=self._numbers,
            state="running",
            cpus=1,
            memory=1 << 27,
            created=now(),
            spec=vm.spec.model_dump(mode="json"),
        )
        self._images[vm.name] = vm.image
        await self._catalog.write(lambda session: session.add(row))
        await self.book.add(replication)
        return Sending(Sender(replication, self._means, vm.look))

    def worker(self) -> int | None:
        """Process id of what ships."""
        found = self.processes.find(role="replica-worker")
        return found[0].ref.pid if found else None

    async def close(self) -> None:
        await self.dispatch.close()


class Sending:
    """A sender at work."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self._task = asyncio.create_task(sender.run())

    async def initial(self, limit: float = 600.0) -> None:
        """Until there is a point."""
        await self.until(lambda: self.sender.figures.newest is not None, limit)

    async def until(self, holds, limit: float = 120.0) -> None:
        deadline = time.monotonic() + limit
        while not holds():
            if self._task.done():
                self._task.result()
            if time.monotonic() > deadline:
                raise RuntimeError(f"it does not come to pass: {self.sender.progress.error}")
            await asyncio.sleep(0.02)

    async def current(self, limit: float = 120.0) -> None:
        """Until all that is written now is over there."""
        at = time.monotonic()
        await self.until(lambda: (new := self.sender.figures.newest) is not None and new.taken > at, limit)

    async def rested(self, limit: float = 120.0) -> None:
        """As `current`, and until the cycle is over here, too."""
        await self.current(limit)
        await self.until(lambda: self.sender.progress.next_at is not None, limit)

    def rpo_p99(self) -> float:
        """Seconds, since `measure_anew`."""
        found = self.sender.figures.now(time.monotonic()).rpo_p99_seconds
        assert found is not None
        return found

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def own_memory(pid: int) -> int:
    """Bytes of memory that end with a process (Private_*, proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) << 10


def processor_seconds(*pids: int | None) -> float:
    """That processes have used."""
    ticks = 0
    for pid in pids:
        if pid is not None:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int) -> int:
    """That a process had written to storage (write_bytes, proc(5))."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
