"""The host daemon's composition root: the only file that knows every room.

    lock ▶ records ▶ rooms ▶ switches and VMs as they are ▶ interrupted operations ▶ API

Ending is not special: VMs are processes of their own and every step is durable, so a SIGTERM does
what a `kill -9` does, only that listeners say goodbye first.
"""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog

from holdfast.api.app import build_app
from holdfast.api.certificate import Certificate, load_or_make, server_context
from holdfast.api.handing import HandingDoor, SourceFileBook
from holdfast.api.handing_client import handing_path
from holdfast.api.server import ApiServer
from holdfast.api.services import Services
from holdfast.api.tokens import TokenStore
from holdfast.api.uploads import UploadFolder
from holdfast.api.verifier_door import TlsVerifierDoor
from holdfast.catalog.events import EventLog
from holdfast.catalog.facts import Facts
from holdfast.catalog.store import Catalog
from holdfast.daemon_config import DaemonConfig
from holdfast.host.acceleration import AccelerationProbe
from holdfast.host.cgroups import VmGroups, find_cgroups
from holdfast.host.check import CheckedHost, check
from holdfast.host.folders import StateFolder
from holdfast.host.inventory import inventory
from holdfast.host.processes import Processes
from holdfast.host.reserve import SpaceReserve
from holdfast.host.vm_users import VmUsers
from holdfast.machine.capabilities import CapabilityProbe
from holdfast.machine.running import Machines
from holdfast.machine.storage_daemon import StorageDaemons
from holdfast.network.ports import Ports
from holdfast.network.switches import SwitchBoard
from holdfast.operations import fetch
from holdfast.operations import images as image_operations
from holdfast.operations.engine import Operations
from holdfast.replication import reviving
from holdfast.replication.composition import Replicas
from holdfast.replication.link import Address
from holdfast.replication.origins import ReplicaOrigins
from holdfast.spec.errors import HoldfastError
from holdfast.spec.host import CheckLine, HostInventory
from holdfast.storage.appliances.exposure import remove_sockets
from holdfast.storage.build import ImageBuilder
from holdfast.storage.download import Downloader
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools
from holdfast.storage.scratch import clean
from holdfast.storage.volumes import Volumes
from holdfast.trust.endorsement_certificate import load_authorities
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.firmware_state import FirmwareStates
from holdfast.trust.host_attestation.attested import AttestedHost
from holdfast.trust.host_attestation.host import AttestingHost
from holdfast.trust.host_attestation.records import GuardKeys, HostBook
from holdfast.trust.host_attestation.tokens import TokenSigner
from holdfast.trust.host_attestation.verifier import Verifier
from holdfast.trust.host_key import HostKeys
from holdfast.trust.key_stores import KeyStores
from holdfast.trust.tpm.sealing import HostTpmSealer
from holdfast.trust.tpm.transports import HOST_TPM
from holdfast.trust.vtpm import Vtpm
from holdfast.vm import (
    attest_work,
    checkpoints,
    create,
    disk_moving,
    disk_work,
    guest_secrets,
    import_work,
    key_work,
    lifecycle,
    vm_export,
    vsphere_work,
)
from holdfast.vm.attest_work import AttestSchedule
from holdfast.vm.attestation import Attestation
from holdfast.vm.checkpoint_records import CheckpointRecords
from holdfast.vm.checkpoint_schedule import CheckpointScheduler
from holdfast.vm.checkpoints import Checkpoints
from holdfast.vm.disks import DiskWork
from holdfast.vm.firmware_state import VmFirmware
from holdfast.vm.guest_evidence import GuestEvidence
from holdfast.vm.guest_secrets import GuestSecrets
from holdfast.vm.housekeeping import keep_house
from holdfast.vm.importing import Imports
from holdfast.vm.nics import NicWork
from holdfast.vm.reconcile import DIED, HOST_RESTARTED
from holdfast.vm.records import VmRecords
from holdfast.vm.recovery import recover
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms
from holdfast.vm.trust_records import TrustRecords
from holdfast.vm.usage import VmUsage
from holdfast.vm.usb import UsbWork
from holdfast.vm.vm_export import VmExports
from holdfast.vm.vsphere_access import VsphereDoor
from holdfast.vm.vsphere_importing import VsphereImports

log = structlog.get_logger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class _Host:
    checked: CheckedHost

    async def check(self) -> tuple[CheckLine, ...]:
        return tuple(await check(self.checked))

    async def inventory(self) -> HostInventory:
        return await inventory()


@dataclass(frozen=True)
class _Composition:
    rooms: Rooms
    registry: VmRegistry
    operations: Operations
    services: Services
    facts: Facts
    schedule: AttestSchedule
    firmware: VmFirmware
    attested_host: AttestedHost
    checkpoints: CheckpointScheduler
    files: SourceFileBook
    replicas: Replicas


def configure_logs() -> None:
    """One JSON object a line on standard error; request and operation ids ride along."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # Lost connections of ended VMs are ours to report, in plain words.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class _Ground:
    """What the rooms stand on."""

    config: DaemonConfig
    state: StateFolder
    catalog: Catalog
    events: EventLog
    facts: Facts
    processes: Processes
    users: VmUsers


def _rooms(ground: _Ground, capabilities: CapabilityProbe, attested_host: AttestedHost) -> Rooms:
    state, processes = ground.state, ground.processes
    records = VmRecords(ground.catalog, ground.events)
    usage = VmUsage(records)
    switches = SwitchBoard(ground.catalog, state, processes, usage)
    images = ImageStore(ground.catalog, state, usage)
    pools = Pools(ground.catalog, ground.events, state, processes, usage)
    host_keys = HostKeys(state.keys, _sealer(ground.config))
    vtpm = Vtpm(processes, state, host_keys)
    variables = VariableStores(processes, state)
    return Rooms(
        state=state,
        events=ground.events,
        records=records,
        checkpoints=CheckpointRecords(ground.catalog),
        processes=processes,
        machines=Machines(processes, capabilities),
        storage=StorageDaemons(processes, capabilities),
        switches=switches,
        ports=Ports(switches, state),
        images=images,
        pools=pools,
        volumes=Volumes(images, pools, processes, ReplicaOrigins(state.replicas)),
        variables=variables,
        keys=KeyStores(processes, state, variables),
        vtpm=vtpm,
        firmware=FirmwareStates(vtpm, host_keys),
        host_keys=host_keys,
        attested_host=attested_host,
        acceleration=AccelerationProbe(processes, ground.facts),
        groups=VmGroups(find_cgroups()),
        identities=ground.users,
    )


async def _compose(ground: _Ground, certificate: Certificate | None, reserve: SpaceReserve) -> _Composition:
    state, catalog, events, processes = ground.state, ground.catalog, ground.events, ground.processes
    capabilities = CapabilityProbe(processes, ground.facts)
    attested = _attestation(ground)
    rooms = _rooms(ground, capabilities, attested.host)
    operations = Operations(catalog, events, state.operations, reserve)
    registry = VmRegistry(rooms, operations)
    trust = TrustRecords(catalog, events)
    evidence = GuestEvidence(trust, state, rooms.vtpm.authority)
    attestation = Attestation(trust, evidence, operations, registry.named)
    secrets = GuestSecrets(rooms, attestation, operations, registry.named)
    door = VsphereDoor(state, rooms.host_keys)
    _register(operations, rooms, registry, (attestation, secrets), ground.users, door)
    firmware = VmFirmware(rooms, registry, operations)
    kept_states = Checkpoints(rooms, registry, operations)
    checked = CheckedHost(
        processes, state.root, rooms.acceleration.verdict, capabilities.get, rooms.host_keys.facts
    )
    replicas = await Replicas.compose(catalog, rooms, registry, operations)
    files = SourceFileBook(uploads := UploadFolder(state.scratch / "uploads"))
    services = Services(
        vms=registry,
        nics=NicWork(rooms, registry.named),
        usb=UsbWork(rooms, registry.named),
        disks=DiskWork(rooms, registry),
        firmware=firmware,
        vm_counts=rooms.records,
        operations=operations,
        images=rooms.images,
        image_work=image_operations.ImageWork(operations, rooms.images),
        uploads=uploads,
        pools=rooms.pools,
        imports=Imports(rooms, operations, files, ground.users.converter),
        fetcher=fetch.SourceFetcher(operations, state),
        vsphere=VsphereImports(rooms, operations, door),
        switches=rooms.switches,
        certificates=key_work.CertificateWork(rooms, operations),
        events=events,
        host=_Host(checked),
        tokens=TokenStore(catalog),
        attesting=attested.host,
        verifier=attested.verifier,
        attested_hosts=attested.book,
        trust=attestation,
        secrets=secrets,
        checkpoints=kept_states,
        exports=VmExports(rooms, registry, operations),
        replicas=replicas,
        fingerprint=certificate.fingerprint if certificate else None,
    )
    schedule = AttestSchedule(attestation, trust, registry.boots)
    scheduler = CheckpointScheduler(kept_states, rooms.checkpoints, registry)
    facts, host = ground.facts, attested.host
    return _Composition(
        rooms, registry, operations, services, facts, schedule, firmware, host, scheduler, files, replicas
    )


def _register(
    operations: Operations,
    rooms: Rooms,
    registry: VmRegistry,
    trusted: tuple[Attestation, GuestSecrets],
    users: VmUsers,
    door: VsphereDoor,
) -> None:
    builder = ImageBuilder(rooms.state, rooms.processes)
    for procedure in (
        *lifecycle.procedures(registry.owner),
        *attest_work.procedures(trusted[0]),
        *guest_secrets.procedures(trusted[1]),
        *create.procedures(rooms, registry.owner, registry.forget),
        *checkpoints.procedures(rooms, registry.owner),
        *vm_export.procedures(rooms, registry.owner),
        *key_work.procedures(rooms, registry.owner),
        *disk_work.procedures(rooms, registry.owner),
        *disk_moving.procedures(rooms, registry.owner),
        *reviving.procedures(rooms, registry.owner, registry.forget),
        *import_work.procedures(rooms, registry.owner, registry.forget, users.converter),
        *vsphere_work.procedures(vsphere_work.Source(rooms, door, registry.owner), registry.forget),
        *fetch.procedures(rooms.state, Downloader()),
        *image_operations.procedures(
            rooms.state, rooms.processes, rooms.images, builder, Downloader(), users.converter
        ),
    ):
        operations.register(procedure)


@dataclass(frozen=True)
class _Attestation:
    host: AttestedHost
    verifier: Verifier
    book: HostBook


def _attestation(ground: _Ground) -> _Attestation:
    config, state = ground.config, ground.state
    book = HostBook(ground.catalog, ground.events)
    authorities = load_authorities(config.tpm_authorities)
    verifier = Verifier(book, GuardKeys(state.keys), TokenSigner.of(state.keys), authorities)
    host = AttestingHost(config.host_tpm or HOST_TPM)
    return _Attestation(AttestedHost(host, state.keys, TlsVerifierDoor()), verifier, book)


def _sealer(config: DaemonConfig) -> HostTpmSealer | None:
    """The host's TPM where one is named, or where the usual device is there."""
    if config.host_tpm == "none":
        return None
    named = config.host_tpm is not None or Path(HOST_TPM.partition(":")[2]).exists()
    return HostTpmSealer(config.host_tpm or HOST_TPM) if named else None


async def _host_restarted(facts: Facts) -> bool:
    """Whether the host has started anew since a daemon last ran on this state folder."""
    boot = (await asyncio.to_thread(_BOOT_ID.read_text)).strip()
    last = await facts.get("host-boot")
    await facts.put("host-boot", {"id": boot})
    return last is not None and last["id"] != boot


async def _come_back(made: _Composition) -> None:
    """Bring records and reality together, as far as the host allows; what it does not is said."""
    rooms = made.rooms
    await rooms.pools.open()
    for problem in await rooms.switches.reconcile():
        log.warning("a switch could not be made", error=problem.message, cure=problem.cure)
    try:
        await rooms.machines.prepare()
    except HoldfastError as error:
        log.warning("QEMU cannot be used", error=error.message, cure=error.cure)
    await recover(rooms, made.registry, HOST_RESTARTED if await _host_restarted(made.facts) else DIED)
    await made.firmware.come_back()
    await rooms.images.recover()
    unfinished = await made.operations.unfinished()
    uploads = [Path(params["path"]) for params in unfinished.values() if "path" in params]
    uploads += [Path(path) for params in unfinished.values() for path in params.get("uploads", ())]
    await asyncio.to_thread(clean, rooms.state.scratch, unfinished, uploads)
    await asyncio.to_thread(remove_sockets, rooms.state.runtime)


async def run(config: DaemonConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        FolderInUse, RecordsNewer, CatalogDamaged, SocketInUse, ...: it cannot serve.
    """
    configure_logs()
    os.umask(0o077)
    state = StateFolder(config.state, config.runtime)
    state.prepare()
    if os.getuid() == 0:
        state.require_passable()
    lock = state.lock()
    reserve = SpaceReserve(state.reserve)
    catalog = await asyncio.to_thread(Catalog.open, state.catalog, reserve)
    certificate = await asyncio.to_thread(load_or_make, state.keys, config.tcp[0]) if config.tcp else None
    ground = _Ground(config, state, catalog, EventLog(catalog), Facts(catalog), Processes(state), VmUsers())
    made = await _compose(ground, certificate, reserve)
    await _come_back(made)
    await made.operations.launch()
    if config.replica_tcp:
        host, port = config.replica_tcp
        await made.replicas.held.listen(Address(host=host, port=port))
    background = [
        asyncio.create_task(made.rooms.acceleration.verdict()),
        asyncio.create_task(made.schedule.keep()),
        asyncio.create_task(made.rooms.pools.watch()),
        asyncio.create_task(made.checkpoints.keep()),
        asyncio.create_task(made.attested_host.keep_attesting()),
        *(asyncio.create_task(each) for each in made.replicas.keep()),
        asyncio.create_task(keep_house(reserve, lambda: _running_folders(made))),
    ]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    app = build_app(made.services)
    tls = server_context(certificate) if certificate else None
    door = HandingDoor(handing_path(config.unix_socket), made.files.add)
    async with door, ApiServer(app, config.unix_socket, config.tcp, tls):
        fingerprint = certificate.fingerprint if certificate else None
        log.info("serving", state=str(state.root), fingerprint=fingerprint)
        await ended.wait()
    log.info("ending; VMs run on")
    for task in background:
        task.cancel()
    lock.release()
    # Threads of the engine may be in the middle of a step: it goes on at the next start.
    os._exit(0)


def _running_folders(made: _Composition) -> list[Path]:
    state = made.rooms.state
    return [state.vm(owner.record.name) for owner in made.registry.owners() if owner.machine]
