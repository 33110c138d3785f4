"""An export lease (vSphere API, HttpNfcLease): where the disks are to be had, and kept alive meanwhile.

    export ─▶ initializing ─▶ ready ── progress, progress ... ──▶ complete
                     └─▶ error            └─ not heard of for leaseTimeout s ─▶ gone

Its addresses may be those of the hosts behind a vCenter; each is believed by the thumbprint that the
lease itself, which came over the checked session, names for it.
"""

import contextlib
import re
import threading
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from holdfast.storage.appliances.reading import short
from holdfast.storage.vsphere.certificate import Trust, pinned
from holdfast.storage.vsphere.machine import Machine
from holdfast.storage.vsphere.refusals import VsphereDiskUnreadable, VsphereLeaseLost

_READY_SECONDS = 600.0
_SHORTEST_BEAT = 1.0
_UNIT = re.compile(r"(\w+?)(\d+):(\d+)$", re.ASCII)


@dataclass(frozen=True)
class ExportedDisk:
    url: str
    trust: Trust
    own: bool
    """By the server of the session, which alone is told the session's cookie."""


class ExportLease:
    """Held from `open` until `close`; a thread of its own tells the server that it is still wanted."""

    def __init__(self, machine: Machine, snapshot: str | None) -> None:
        """`snapshot` None: the VM is off."""
        self._machine = machine
        self._session = machine.session
        self._snapshot = snapshot
        self._lease: Any = None
        self._info: Any = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Blocks until it is ready; `close` follows, also where this fails.

        Raises VsphereLeaseLost, VsphereTimedOut, and as `Session.asking`.
        """
        self._lease = self._machine.export(self._snapshot)
        states = vim.HttpNfcLease.State
        self._session.wait(
            self._lease, "state", lambda value: value in (states.ready, states.error), _READY_SECONDS
        )
        found = self._session.properties(self._lease, "state", "info", "error")
        _require_ready(found)
        self._info = found["info"]
        self._thread = threading.Thread(target=self._keep, name="export lease", daemon=True)
        self._thread.start()

    def disks(self, devices: Any) -> dict[int, ExportedDisk]:
        """By the key of the VirtualDisk among `devices`. Raises VsphereDiskUnreadable."""
        urls = [each for each in self._info.deviceUrl or () if each.disk]
        found: dict[int, ExportedDisk] = {}
        disks = [each for each in devices if isinstance(each, vim.vm.device.VirtualDisk)]
        controllers = {each.key: each for each in devices}
        for disk in disks:
            place = _place(disk, controllers)
            fitting = [each for each in urls if _place_of_key(each.key) == place]
            if len(fitting) != 1 and len(disks) == len(urls) == 1:
                fitting = urls
            if len(fitting) != 1:
                raise VsphereDiskUnreadable(
                    f"the export has no disk {disk.key}",
                    value=disk.key,
                    cure="Export the VM as an OVA there, and import that.",
                )
            found[disk.key] = self._exported(fitting[0])
        return found

    def _exported(self, device: Any) -> ExportedDisk:
        address = self._session.address
        # `*` stands for the server that was asked (vSphere API, HttpNfcLeaseDeviceUrl.url).
        url = (
            str(device.url)
            .replace("://*/", f"://{address.server}/", 1)
            .replace("://*:", f"://{_bracketed(address.host)}:", 1)
        )
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise VsphereDiskUnreadable("the export's address is not one of HTTPS", value=url[:200])
        port = parts.port or 443
        if (parts.hostname, port) == (address.host, address.port):
            return ExportedDisk(url, self._session.trust, own=True)
        server = f"{_bracketed(parts.hostname)}:{port}"
        if not device.sslThumbprint:
            raise VsphereDiskUnreadable(f"the server vouches for no certificate of {server}", value=server)
        trust = pinned(parts.hostname, port, server, device.sslThumbprint, "sha1")
        return ExportedDisk(url, trust, own=False)

    def _keep(self) -> None:
        beat = max(_SHORTEST_BEAT, (self._info.leaseTimeout or 300) / 4)
        while not self._ended.wait(beat) and self.lost() is None:
            pass

    def lost(self) -> str | None:
        """Asks the server: why the lease is no more; None: it holds, as far as can be told."""
        try:
            self._lease.Progress(50)
        except vmodl.MethodFault as fault:
            return short(str(getattr(fault, "msg", "") or type(fault).__name__), 200)
        except (OSError, HTTPException, ExpatError):
            pass  # the line may come back before the lease runs out
        return None

    def close(self, whole: bool) -> None:
        """Give it back; `whole`: all was read."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._lease is None:
            return
        with contextlib.suppress(Exception):  # it runs out by itself
            if whole:
                self._lease.Complete()
            else:
                self._lease.Abort()


def _require_ready(found: dict[str, Any]) -> None:
    if found.get("info") is None or found.get("state") == vim.HttpNfcLease.State.error:
        fault = found.get("error")
        why = short(str(getattr(fault, "msg", "") or type(fault).__name__), 300)
        raise VsphereLeaseLost(
            f"the server exports nothing: {why}", value=why, cure="See the server's tasks and events."
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _place(disk: Any, controllers: dict[int, Any]) -> tuple[str, int, int] | None:
    """Kind of controller, its number and the disk's unit, as a lease's keys name them."""
    controller = controllers.get(disk.controllerKey)
    if controller is None:
        return None
    kind = type(controller).__name__.rpartition(".")[2]
    return kind, controller.busNumber or 0, disk.unitNumber or 0


def _place_of_key(key: str) -> tuple[str, int, int] | None:
    """Of `/vm-42/ParaVirtualSCSIController0:1`."""
    found = _UNIT.search(str(key))
    return (found[1], int(found[2]), int(found[3])) if found else None
