"""The host's switches: recorded in the catalog, made in the kernel, repaired at every daemon start.

The record is the truth. It is written before anything is made, so after a crash `reconcile` finishes
what is recorded and removes what carries our mark and is not. What a switch consists of:

    private   bridge             internal   bridge + gateway address + dnsmasq + nftables table
    user      nothing            external   bridge + a physical interface in it

A port with a VLAN on an internal switch reaches other ports of that VLAN, not the gateway.
"""

import asyncio
import fnmatch
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import SwitchRow
from holdfast.host.files import remove_tree, write_atomic
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.network import links, nat
from holdfast.network.addresses import check_subnet, free_subnet
from holdfast.network.name_service import NameService
from holdfast.spec.errors import Conflict, Failed, HoldfastError, NotFound
from holdfast.spec.names import check_name
from holdfast.spec.paging import BadSort, Page, PageQuery
from holdfast.spec.switch import SwitchSpec, SwitchType

# `list` is a verb of the board below, so its type needs other names inside the class.
_Specs = list[SwitchSpec]
_Problems = list[HoldfastError]

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class SwitchMissing(NotFound):
    id = "switch-not-found"


class SwitchExists(Conflict):
    id = "switch-exists"


class SwitchInUse(Conflict):
    id = "switch-in-use"


class SwitchIncomplete(Failed):
    id = "switch-incomplete"


class SwitchUsage(Protocol):
    """Who is plugged in, running or not; the room of VMs knows."""

    async def vms_on(self, switch: str) -> Sequence[str]: ...


class SwitchBoard:
    """Owner of the switches of one state folder."""

    def __init__(
        self, catalog: Catalog, state: StateFolder, processes: Processes, usage: SwitchUsage | None = None
    ) -> None:
        self._catalog = catalog
        self._state = state
        self._processes = processes
        self._usage = usage
        self._lock = asyncio.Lock()

    async def create(self, spec: SwitchSpec) -> SwitchSpec:
        """Record and make a switch; returns it with the subnet that it got.

        Raises:
            SwitchExists, BadSubnet, SubnetInUse, InterfaceMissing, InterfaceInUse: refused.
            NetworkNotPermitted, NetworkFailed: the host did not let us; nothing is left behind.
        """
        async with self._lock:
            existing = await self._rows()
            if any(row.name.lower() == spec.name.lower() for row in existing):
                raise SwitchExists(
                    f"there is already a switch {spec.name!r}",
                    value=spec.name,
                    cure="Choose another name.",
                )
            spec = await self._checked(spec, existing)
            await self._catalog.write(lambda session: _insert(session, spec))
            try:
                await self._make(spec)
            except BaseException:
                await asyncio.shield(self._give_up(spec))
                raise
        return spec

    async def all(self) -> _Specs:
        return await self._rows()

    async def list(self, query: PageQuery) -> Page[SwitchSpec]:
        """One page, by name or type. Raises BadSort."""
        key = query.sort.lstrip("-")
        if key not in ("name", "type"):
            raise BadSort(f"switches cannot be sorted by {key!r}", value=key, cure="Use name or type.")
        wanted = (query.filter or "").lower()
        found = [
            spec
            for spec in await self._rows()
            if wanted in spec.name.lower() or fnmatch.fnmatchcase(spec.name.lower(), wanted)
        ]
        found.sort(key=lambda spec: str(getattr(spec, key)).lower(), reverse=query.sort.startswith("-"))
        items = tuple(found[query.offset : query.offset + query.limit])
        return Page(items=items, total=len(found), offset=query.offset, limit=query.limit)

    async def show(self, name: str) -> SwitchSpec:
        """Raises SwitchMissing."""
        return await self.get(name)

    async def get(self, name: str) -> SwitchSpec:
        for spec in await self._rows():
            if spec.name.lower() == name.lower():
                return spec
        raise SwitchMissing(
            f"there is no switch {name[:64]!r}", value=name[:64], cure="See `holdfast switch list`."
        )

    async def delete(self, name: str) -> None:
        """Remove a switch with all that belongs to it.

        Raises:
            SwitchMissing: there is none of that name.
            SwitchInUse: VMs are plugged into it.
        """
        async with self._lock:
            spec = await self.get(name)
            users = list(await self._usage.vms_on(spec.name)) if self._usage else []
            bridge = self.bridge(spec.name)
            ports = await asyncio.to_thread(links.members, bridge) if _has_bridge(spec) else []
            taps = [port for port in ports if port.startswith("hft")]
            if users or taps:
                raise SwitchInUse(
                    f"the switch {spec.name!r} is in use by {', '.join(users or taps)}",
                    value=spec.name,
                    cure="Move those VMs to another switch, or delete them.",
                    detail={"vms": users},
                )
            await self._forget(spec)

    async def reconcile(self) -> _Problems:
        """Make what is recorded whole, remove what is not recorded; returns what could not be made."""
        problems: _Problems = []
        async with self._lock:
            specs = await self._rows()
            if any(_has_bridge(spec) for spec in specs) or await self._has_leftovers():
                await self._remove_unrecorded(specs)
            for spec in specs:
                try:
                    await self._make(spec)
                except HoldfastError as error:
                    problems.append(error)
        return problems

    def bridge(self, name: str) -> str:
        """Name of a switch's bridge in the kernel."""
        return links.bridge_name(self._state.mark, name)

    def name_service(self, spec: SwitchSpec) -> NameService:
        """DHCP and DNS of an internal switch."""
        if spec.subnet is None:
            raise SwitchIncomplete(f"the switch {spec.name!r} has no subnet", value=spec.name)
        network = ipaddress.IPv4Network(spec.subnet)
        folder = self._state.switches / check_name(spec.name)
        return NameService(spec.name, self.bridge(spec.name), network, folder)

    async def _rows(self) -> _Specs:
        def read(session: Session) -> _Specs:
            rows = session.scalars(select(SwitchRow).order_by(SwitchRow.name)).all()
            return [SwitchSpec.model_validate(row.spec) for row in rows]

        return await self._catalog.read(read)

    async def _checked(self, spec: SwitchSpec, existing: _Specs) -> SwitchSpec:
        if spec.type is SwitchType.EXTERNAL and spec.interface:
            await asyncio.to_thread(links.check_uplink, spec.interface, self.bridge(spec.name))
        if spec.type is not SwitchType.INTERNAL:
            return spec
        taken = await asyncio.to_thread(links.used_networks)
        taken += [ipaddress.IPv4Network(other.subnet) for other in existing if other.subnet]
        network = check_subnet(spec.subnet, taken) if spec.subnet else free_subnet(taken)
        return spec.model_copy(update={"subnet": str(network)})

    async def _make(self, spec: SwitchSpec) -> None:
        if not _has_bridge(spec):
            return
        bridge = self.bridge(spec.name)
        if spec.type is SwitchType.INTERNAL:
            service = self.name_service(spec)
            made = await asyncio.to_thread(links.ensure_bridge, bridge, service.gateway)
            await asyncio.to_thread(self._forward)
            await nat.set_rules(self._processes, self._table(spec.name), bridge, str(service.network))
            if made:
                # One that was bound to a bridge of the same name serves nobody any more.
                await service.stop(self._processes)
            if not service.running(self._processes):
                await service.start(self._processes)
            return
        await asyncio.to_thread(links.ensure_bridge, bridge, None)
        if spec.interface:
            await asyncio.to_thread(links.check_uplink, spec.interface, bridge)
            await asyncio.to_thread(links.join, bridge, spec.interface, None)

    async def _give_up(self, spec: SwitchSpec) -> None:
        """Unmake what could not be made; what resists is left to `reconcile`, unrecorded."""
        try:
            await self._forget(spec)
        except HoldfastError:
            await self._catalog.write(lambda session: _remove(session, spec.name))

    async def _forget(self, spec: SwitchSpec) -> None:
        """Unmake a switch, the record last, so that a crash leaves nothing that nobody knows of."""
        if _has_bridge(spec):
            if spec.type is SwitchType.INTERNAL:
                await self.name_service(spec).stop(self._processes)
                await nat.remove_rules(self._processes, self._table(spec.name))
                await self._stop_forwarding(spec)
            await asyncio.to_thread(links.remove_link, self.bridge(spec.name))
            await asyncio.to_thread(remove_tree, self._state.switches / check_name(spec.name))
        await self._catalog.write(lambda session: _remove(session, spec.name))

    def _table(self, name: str) -> str:
        return nat.table_prefix(self._state.mark) + self.bridge(name)[-8:]

    async def _has_leftovers(self) -> bool:
        prefix = f"hfb{self._state.mark[:4]}"
        return bool(await asyncio.to_thread(links.links, prefix)) or any(
            marked.owner.startswith("switch:") for marked in self._processes.find()
        )

    async def _remove_unrecorded(self, specs: _Specs) -> None:
        owners = {f"switch:{spec.name}" for spec in specs}
        for marked in self._processes.find(role="dnsmasq"):
            if marked.owner.startswith("switch:") and marked.owner not in owners:
                await self._processes.end(marked.ref)
        bridges = {self.bridge(spec.name) for spec in specs if _has_bridge(spec)}
        for name in await asyncio.to_thread(links.links, f"hfb{self._state.mark[:4]}"):
            if name not in bridges:
                await asyncio.to_thread(links.remove_link, name)
        wanted = {self._table(spec.name) for spec in specs if spec.type is SwitchType.INTERNAL}
        for table in await nat.tables(self._processes, nat.table_prefix(self._state.mark)):
            if table not in wanted:
                await nat.remove_rules(self._processes, table)

    @property
    def _was_off(self) -> Path:
        return self._state.switches / ".forwarding-was-off"

    def _forward(self) -> None:
        if _FORWARDING.read_text(encoding="ascii").strip() == "0":
            write_atomic(self._was_off, b"", 0o600)
            _FORWARDING.write_text("1", encoding="ascii")

    async def _stop_forwarding(self, leaving: SwitchSpec) -> None:
        """With our last internal switch, forwarding goes back to what it was before the first."""
        others = [spec for spec in await self._rows() if spec.type is SwitchType.INTERNAL]
        if all(spec.name == leaving.name for spec in others) and self._was_off.exists():
            _FORWARDING.write_text("0", encoding="ascii")
            self._was_off.unlink()


def _has_bridge(spec: SwitchSpec) -> bool:
    return spec.type is not SwitchType.USER


def _insert(session: Session, spec: SwitchSpec) -> None:
    session.add(
        SwitchRow(
            name=spec.name, spec=spec.model_dump(mode="json"), created=datetime.now(UTC).replace(tzinfo=None)
        )
    )


def _remove(session: Session, name: str) -> None:
    row = session.get(SwitchRow, name)
    if row is not None:
        session.delete(row)
