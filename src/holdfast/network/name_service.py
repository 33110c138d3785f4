"""DHCP and DNS of an internal switch: one dnsmasq with a configuration of its own.

    <state>/switches/<name>/
    ├── dnsmasq.conf   written at each start    ├── leases   dnsmasq's
    ├── hosts/<mac>    `MAC,name` of each VM; dnsmasq takes up new files by itself (inotify)
    └── dnsmasq.log

A VM named `web` is `web.<switch>.holdfast.internal` (`.internal` is reserved for private use by
ICANN's resolution of 29 July 2024). dnsmasq binds its ports, then runs as `nobody`. It goes to the
background only when it serves, which is how its start is awaited.
"""

import asyncio
import grp
import ipaddress
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from holdfast.host.files import write_atomic
from holdfast.host.processes import Processes
from holdfast.network.links import NetworkFailed
from holdfast.spec.names import host_name

_ROLE = "dnsmasq"
_SECONDS = 30.0
_USER = "nobody"
_MAX_LEASES = 4 * 1024 * 1024


@dataclass(frozen=True)
class NameService:
    switch: str
    bridge: str
    network: ipaddress.IPv4Network
    folder: Path

    @property
    def gateway(self) -> ipaddress.IPv4Interface:
        """The host's own address on the switch: the first one."""
        return ipaddress.IPv4Interface((int(self.network.network_address) + 1, self.network.prefixlen))

    @property
    def domain(self) -> str:
        return f"{host_name(self.switch)}.holdfast.internal"

    @property
    def owner(self) -> str:
        return f"switch:{self.switch}"

    def config(self) -> str:
        first, last = self.network.network_address + 2, self.network.broadcast_address - 1
        return f"""interface={self.bridge}
except-interface=lo
bind-interfaces
user={_USER}
group={grp.getgrgid(pwd.getpwnam(_USER).pw_gid).gr_name}
pid-file=
no-hosts
domain-needed
bogus-priv
domain={self.domain}
local=/{self.domain}/
interface-name=gateway.{self.domain},{self.bridge}
dhcp-authoritative
dhcp-range={first},{last},{self.network.netmask},12h
dhcp-option=option:router,{self.gateway.ip}
dhcp-option=option:dns-server,{self.gateway.ip}
dhcp-leasefile={self.folder / "leases"}
dhcp-hostsdir={self.folder / "hosts"}
log-facility={self.folder / "dnsmasq.log"}
"""

    def running(self, processes: Processes) -> bool:
        return bool(processes.find(owner=self.owner, role=_ROLE))

    async def start(self, processes: Processes) -> None:
        """Start dnsmasq; returns when it serves.

        Raises:
            NetworkFailed: it did not start; the detail holds what it said.
        """
        await asyncio.to_thread(self._prepare)
        done = await processes.run(
            ["dnsmasq", f"--conf-file={self.folder / 'dnsmasq.conf'}"],
            owner=self.owner,
            role=_ROLE,
            timeout=_SECONDS,
        )
        if done.returncode != 0:
            raise NetworkFailed(
                f"dnsmasq did not start for the switch {self.switch!r}",
                value=self.switch,
                cure="See what it said in the detail; another program may hold port 53 or 67 there.",
                detail={"log": (done.stdout + done.stderr)[-2000:].decode(errors="replace")},
            )

    async def stop(self, processes: Processes) -> None:
        for marked in processes.find(owner=self.owner, role=_ROLE):
            await processes.end(marked.ref)

    def _prepare(self) -> None:
        for folder in (self.folder, self.folder / "hosts"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
        nobody = pwd.getpwnam(_USER)
        # dnsmasq rewrites its leases in place, so the file must be its user's.
        fd = os.open(self.folder / "leases", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.fchown(fd, nobody.pw_uid, nobody.pw_gid)
        os.close(fd)
        write_atomic(self.folder / "dnsmasq.conf", self.config().encode(), 0o644)

    def register(self, mac: str, vm_name: str) -> None:
        """Let the VM with this MAC address be known by its name."""
        path = self.folder / "hosts" / mac.replace(":", "-")
        write_atomic(path, f"{mac},{host_name(vm_name)}\n".encode(), 0o644)

    def forget(self, mac: str) -> None:
        (self.folder / "hosts" / mac.replace(":", "-")).unlink(missing_ok=True)

    def leased(self, mac: str) -> list[str]:
        """Addresses leased to a MAC; dnsmasq's format: expiry, MAC, address, name, client id."""
        try:
            with (self.folder / "leases").open("rb") as file:
                lines = file.read(_MAX_LEASES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        fields = (line.split() for line in lines)
        return [parts[2] for parts in fields if len(parts) >= 4 and parts[1] == mac]
