"""A daemon with the real doors, tokens and events, and a registry of VMs that live in a dict."""

import asyncio
import base64
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog
from fake_devices import FakeNics, FakeUsb
from fake_pools import FakePools

from holdfast.api.app import build_app
from holdfast.api.certificate import load_or_make, server_context
from holdfast.api.server import ApiServer
from holdfast.api.services import Services
from holdfast.api.tokens import TokenStore
from holdfast.api.uploads import UploadFolder
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.spec.attestation import PolicyAnswer, Schedule, TrustView, VmVerdict
from holdfast.spec.certificates import (
    CertificateStatus,
    CertificateView,
    CertsEnrol,
    CertsUpdate,
    KeyPlan,
    KeyPlans,
    KeyStep,
    VmCertificates,
)
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.firmware_state import (
    HostKeyKind,
    HostKeyRotate,
    HostKeyRotation,
    RecoveryKey,
    RecoveryKeyRequest,
    StateExport,
    StateImport,
)
from holdfast.spec.host import CheckLine, CheckStatus, HostInventory
from holdfast.spec.host_attestation import EnrolledHost
from holdfast.spec.ids import new_id
from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.released import SecretAdd, SecretRelease, SecretView
from holdfast.spec.switch import SwitchSpec
from holdfast.spec.trust import Bank, Finding, Severity, TrustPolicy
from holdfast.spec.vm import VmSpec, VmState
from holdfast.spec.vm_requests import ExecRequest, ExecResult, VmChange, VmClone, VmCreate
from holdfast.spec.vm_view import GuestView, VmSummary, VmView
from holdfast.trust.tpm.refusals import NoTpm

sys.path.insert(0, str(Path(__file__).parent))

from fake_checkpoints import FakeCheckpoints, FakeVmExports
from fake_disks import FakeDisks
from fake_imports import FakeImports, FakeVsphere
from fake_replicas import FakeReplicas

T = TypeVar("T")
structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)],
    # The process's own stream: `sys.stderr` may be the command line's, which is called in this process.
    logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
)
TIME = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class VmNotFound(NotFound):
    id = "vm-not-found"


class VmNameTaken(Conflict):
    id = "vm-name-taken"


def _page(items: list[Any], query: PageQuery) -> Page[Any]:
    part = items[query.offset : query.offset + query.limit]
    return Page(items=tuple(part), total=len(items), offset=query.offset, limit=query.limit)


class FakeOperations:
    def __init__(self, events: EventLog) -> None:
        self.events = events
        self.known: dict[str, Operation] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.undone_at_once = True
        self.tasks: set[asyncio.Task[None]] = set()

    def begin(self, kind: str, subject: str, actor: str, work: Callable[[], None]) -> Operation:
        operation = Operation(
            id=new_id(),
            kind=kind,
            subject=subject,
            phase="Working",
            state=OperationState.RUNNING,
            actor=actor,
            created=TIME,
        )
        self.known[operation.id] = operation
        task = asyncio.create_task(self._run(operation, work))
        self.tasks.add(task)
        return operation

    async def _run(self, operation: Operation, work: Callable[[], None]) -> None:
        data = {
            "id": operation.id,
            "kind": operation.kind,
            "phase": "Working",
            "progress": 0.5,
            "text": "half",
        }
        await self.events.emit("operation.progress", operation.subject, data)
        await self.hold.wait()
        if self.known[operation.id].state is OperationState.RUNNING:
            work()
            await self.end(operation.id, OperationState.SUCCEEDED)

    async def end(self, operation_id: str, state: OperationState) -> None:
        self.known[operation_id] = self.known[operation_id].model_copy(
            update={"state": state, "progress": 1.0}
        )
        subject = self.known[operation_id].subject
        await self.events.emit("operation.ended", subject, {"id": operation_id, "state": state})

    async def get(self, operation_id: str) -> Operation:
        if operation_id not in self.known:
            raise NotFound(f"there is no operation {operation_id!r}", value=operation_id)
        return self.known[operation_id]

    async def cancel(self, operation_id: str) -> Operation:
        if self.undone_at_once:
            await self.end(operation_id, OperationState.CANCELLED)
        return self.known[operation_id]

    async def list(self, query: PageQuery, running_only: bool = False) -> Page[Operation]:
        return _page(
            [each for each in self.known.values() if not running_only or not each.state.ended], query
        )


class FakeVms:
    def __init__(self, operations: FakeOperations) -> None:
        self.operations = operations
        self.known: dict[str, VmView] = {}
        self.created: list[VmCreate] = []
        self.console: Path | None = None

    def _get(self, name: str) -> VmView:
        for vm in self.known.values():
            if name in (vm.name, vm.id):
                return vm
        raise VmNotFound(f"there is no VM {name!r}", value=name, cure="List them.")

    def _set(self, name: str, **update: Any) -> VmView:
        self.known[name] = self._get(name).model_copy(update=update)
        return self.known[name]

    async def create(self, request: VmCreate, actor: str) -> Operation:
        if request.name in self.known:
            raise VmNameTaken(f"there is already a VM named {request.name!r}", value=request.name)
        self.created.append(request)
        spec = VmSpec(cpus=request.cpus, memory=request.memory)
        view = VmView(
            id=new_id(), name=request.name, state=VmState.OFF, cpus=spec.cpus, memory=spec.memory,
            acceleration=None, addresses=(), created=TIME, spec=spec, guest=GuestView(), folder="/vms/x",
        )  # fmt: skip
        return self.operations.begin(
            "vm.create", request.name, actor, lambda: self.known.update({request.name: view})
        )

    def _later(self, kind: str, name: str, actor: str, state: VmState) -> Operation:
        self._get(name)

        def work() -> None:
            self._set(name, state=state)

        return self.operations.begin(kind, name, actor, work)

    async def start(self, name: str, actor: str) -> Operation:
        return self._later("vm.start", name, actor, VmState.RUNNING)

    async def stop(self, name: str, timeout_seconds: float, actor: str) -> Operation:
        return self._later("vm.stop", name, actor, VmState.OFF)

    async def restart(self, name: str, timeout_seconds: float, actor: str) -> Operation:
        return self._later("vm.restart", name, actor, VmState.RUNNING)

    async def save(self, name: str, actor: str) -> Operation:
        return self._later("vm.save", name, actor, VmState.SAVED)

    async def clone(self, name: str, request: VmClone, actor: str) -> Operation:
        copy = self._get(name).model_copy(update={"name": request.name})
        return self.operations.begin("vm.clone", name, actor, lambda: self.known.update({request.name: copy}))

    async def delete(self, name: str, force: bool, actor: str) -> Operation:
        self._get(name)

        def work() -> None:
            self.known.pop(name)

        return self.operations.begin("vm.delete", name, actor, work)

    async def kill(self, name: str) -> VmView:
        return self._set(name, state=VmState.OFF)

    async def pause(self, name: str) -> VmView:
        return self._set(name, state=VmState.PAUSED)

    async def resume(self, name: str) -> VmView:
        return self._set(name, state=VmState.RUNNING)

    async def rename(self, name: str, new_name: str) -> VmView:
        self.known[new_name] = self._get(name).model_copy(update={"name": new_name})
        return self.known[new_name]

    async def change(self, name: str, change: VmChange) -> VmView:
        return self._set(name, cpus=change.cpus or self._get(name).cpus)

    async def show(self, name: str) -> VmView:
        if name == "broken":
            raise RuntimeError("secret of the inside")
        return self._get(name)

    async def execute(self, name: str, request: ExecRequest) -> ExecResult:
        return ExecResult(exit_code=7, stdout=" ".join(request.argv) + "\n\x1b[31mred\n", stderr="")

    async def screenshot(self, name: str) -> bytes:
        return b"\x89PNG\r\n\x1a\n"

    async def log(self, name: str, lines: int, source: str) -> "list[str]":
        return [f"{source} \x1b]0;evil\x07"]

    async def console_path(self, name: str) -> Path:
        self._get(name)
        assert self.console
        return self.console

    vnc_path = console_path

    async def list(self, query: PageQuery, state: VmState | None = None) -> Page[VmSummary]:
        fields = set(VmSummary.model_fields)
        found = [each for each in self.known.values() if state in (None, each.state)]
        return _page([VmSummary(**each.model_dump(include=fields)) for each in found], query)

    async def count_by_state(self) -> dict[str, int]:
        return {"off": len(self.known)}


class FakeTrust:
    """A VM's trust with a verdict that a test sets; what is asked for is kept."""

    def __init__(self, vms: FakeVms, operations: FakeOperations) -> None:
        self.vms = vms
        self.operations = operations
        self.asked: list[Any] = []
        self.kept_policy = TrustPolicy()
        self.verdict = VmVerdict(
            verdict="pass",
            findings=(Finding(id="quote-valid", severity=Severity.INFO, text="it is"),),
            bank=Bank.SHA256,
            pcrs={4: "ab" * 32},
            chain=(),
            policy="default",
            attested=True,
            number=1,
            vm="web",
            time=TIME,
        )

    async def show(self, name: str) -> TrustView:
        vm = self.vms._get(name).name
        return TrustView(
            vm=vm, enrolment=None, policy=self.kept_policy, interval_seconds=None, verdict=self.verdict
        )

    async def begin(self, name: str, actor: str) -> Operation:
        self.vms._get(name)
        begun = self.operations.begin("vm.attest", name, actor, lambda: None)
        result = self.verdict.model_dump(mode="json")
        self.operations.known[begun.id] = begun.model_copy(update={"result": result})
        return begun

    async def history(self, name: str, query: PageQuery) -> Page[VmVerdict]:
        return Page(items=(self.verdict,), total=1, offset=query.offset, limit=query.limit)

    async def policy(self, name: str) -> TrustPolicy:
        return self.kept_policy

    async def learn(self, name: str, dry_run: bool) -> PolicyAnswer:
        return PolicyAnswer(policy=self.kept_policy, stored=not dry_run, change=None)

    async def set_policy(self, name: str, policy: TrustPolicy, dry_run: bool) -> PolicyAnswer:
        if not dry_run:
            self.kept_policy = policy
        return PolicyAnswer(policy=policy, stored=not dry_run, change=None)

    async def schedule(self, name: str, wanted: Schedule) -> TrustView:
        self.asked.append(wanted.interval_seconds)
        return await self.show(name)

    async def forget(self, name: str) -> None:
        self.asked.append(("forget", self.vms._get(name).name))

    async def passed(self) -> dict[str, bool]:
        return {"web": self.verdict.verdict == "pass"}


class FakeSecrets:
    def __init__(self, vms: FakeVms, operations: FakeOperations) -> None:
        self.vms = vms
        self.operations = operations
        self.kept: dict[str, bytes] = {}
        self.released: list[tuple[str, str | None]] = []

    async def add(self, name: str, request: SecretAdd) -> SecretView:
        self.vms._get(name)
        self.kept[request.name] = base64.b64decode(request.content)
        return SecretView(name=request.name, size=len(self.kept[request.name]), stored=TIME)

    async def delete(self, name: str, secret: str) -> None:
        del self.kept[secret]

    async def release(self, name: str, request: SecretRelease, actor: str) -> Operation:
        self.released.append((request.name, request.path))
        return self.operations.begin("vm.release-secret", name, actor, lambda: None)

    async def list(self, name: str) -> tuple[SecretView, ...]:
        self.vms._get(name)
        return tuple(SecretView(name=each, size=len(self.kept[each]), stored=TIME) for each in self.kept)


class FakeFirmware:
    def __init__(self, vms: FakeVms) -> None:
        self.vms = vms
        self.asked: list[Any] = []
        self.keys: dict[str, str] = {}

    async def export_state(self, name: str, request: StateExport) -> bytes:
        self.vms._get(name)
        self.asked.append(request)
        return b"\x89HFS\0exported"

    async def import_state(self, name: str, path: Path, request: StateImport, actor: str) -> VmView:
        self.asked.append((path.read_bytes(), request, actor))
        path.unlink()
        return self.vms._get(name)

    async def recovery_key(self, name: str, request: RecoveryKeyRequest) -> RecoveryKey:
        self.vms._get(name)
        if name in self.keys and not request.new:
            raise Conflict("a recovery key was made", value=name)
        self.keys[name] = f"KEY-{len(self.keys)}-{request.new}"
        return RecoveryKey(vm=name, recovery_key=self.keys[name])

    async def recover(self, name: str, text: str) -> VmView:
        self.asked.append(text)
        return self.vms._get(name)

    async def rotate_host_key(self, request: HostKeyRotate) -> HostKeyRotation:
        self.asked.append(request.to)
        return HostKeyRotation(
            kind=request.to or HostKeyKind.TPM,
            id="0" * 16,
            words="kept well",
            rewrapped=3,
            unreadable=("db",),
        )


class FakeImages:
    def __init__(self, operations: FakeOperations) -> None:
        self.operations = operations
        self.known: dict[str, Image] = {}

    def _add(self, name: str, kind: ImageKind, size: int) -> None:
        self.known[name] = Image(
            digest="sha256:" + "0" * 64, names=(name,), kind=kind, origin=ImageOrigin.IMPORTED, source="x",
            virtual_size=size, stored_size=size, created=TIME,
        )  # fmt: skip

    async def get(self, name: str) -> Image:
        if name not in self.known:
            raise NotFound(f"there is no image {name!r}", value=name)
        return self.known[name]

    async def delete(self, name: str) -> None:
        del self.known[name]

    async def list(self, query: PageQuery) -> Page[Image]:
        return _page(list(self.known.values()), query)

    async def build(self, request: Any, actor: str) -> Operation:
        return self.operations.begin(
            "image.build", request.recipe, actor, lambda: self._add(request.recipe, ImageKind.DISK, 1)
        )

    async def pull(self, request: Any, actor: str) -> Operation:
        return self.operations.begin("image.pull", request.source, actor, lambda: None)

    async def import_file(
        self, path: Path, name: str, kind: ImageKind | None, source: str, actor: str
    ) -> Operation:
        size = path.stat().st_size
        path.unlink()
        return self.operations.begin(
            "image.import", name, actor, lambda: self._add(name, kind or ImageKind.DISK, size)
        )


class FakeSwitches:
    def __init__(self) -> None:
        self.known: dict[str, SwitchSpec] = {}

    async def create(self, spec: SwitchSpec) -> SwitchSpec:
        self.known[spec.name] = spec
        return spec

    async def show(self, name: str) -> SwitchSpec:
        return self.known[name]

    async def delete(self, name: str) -> None:
        del self.known[name]

    async def list(self, query: PageQuery) -> Page[SwitchSpec]:
        return _page(list(self.known.values()), query)


class FakeCertificates:
    def __init__(self, operations: FakeOperations) -> None:
        self.operations = operations
        self.asked: list[Any] = []
        view = CertificateView(
            variable="db", subject="CN=A \u202e CA", issuer="CN=A", expires=TIME, fingerprint="0" * 64
        )
        self.known = VmCertificates(
            vm="web", status=CertificateStatus.UPDATE_AVAILABLE, reason="To be added: one.",
            loader_signers=("A CA", "B CA"), certificates=(view,), missing=("uefi-ca-2023",),
        )  # fmt: skip

    async def show(self, name: str) -> VmCertificates:
        if name != "web":
            raise VmNotFound(f"there is no VM {name!r}", value=name)
        return self.known

    async def plan(self, request: CertsUpdate) -> KeyPlans:
        self.asked.append(request)
        step = KeyStep(variable="db", action="add", what="B CA", expires=TIME)
        plan = KeyPlan(vm="web", when="now", status=self.known.status, steps=(step,), notices=("PCR 7",))
        return KeyPlans(items=(plan,))

    def _begin(self, kind: str, subject: str, actor: str, request: Any) -> Operation:
        self.asked.append(request)
        return self.operations.begin(kind, subject, actor, lambda: None)

    async def update(self, request: CertsUpdate, actor: str) -> Operation:
        return self._begin("certs.update", "web", actor, request)

    async def rollback(self, name: str, actor: str) -> Operation:
        return self._begin("certs.rollback", name, actor, name)

    async def enrol(self, name: str, request: CertsEnrol, actor: str) -> Operation:
        return self._begin("certs.enrol", name, actor, request)

    async def list(self, query: PageQuery) -> Page[VmCertificates]:
        return _page([self.known], query)


class FakeHost:
    async def check(self) -> tuple[CheckLine, ...]:
        return (
            CheckLine(id="qemu", title="QEMU", status=CheckStatus.MISSING, text="none", cure="Install it."),
        )

    async def inventory(self) -> HostInventory:
        return HostInventory(
            name="h", kernel="6", cpu_model="c", cpus=(), nodes=(), memory=1, memory_available=1, devices=()
        )


class FakeAttesting:
    """A host without a TPM."""

    async def identity(self) -> Any:
        raise NoTpm("there is no TPM at device:/dev/tpmrm0", value="device:/dev/tpmrm0", cure="Enable it.")

    async def verifier(self) -> Any:
        raise NotFound("no verifier has enrolled this host")


class FakeVerifier:
    """Knows one host."""

    async def page(self, query: PageQuery) -> Page[EnrolledHost]:
        pcrs = {0: "11" * 32}
        host = EnrolledHost(
            id="ab" * 32, name="alpha", endorsement="00", attestation="00", certified=False, pcrs=pcrs,
            enrolled=datetime(2030, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        return Page(items=(host,), total=1, offset=query.offset, limit=query.limit)

    async def forget(self, name: str) -> None:
        raise NotFound(f"this verifier knows no host {name!r}", value=name)


class FakeDaemon:
    """Runs in a thread of its own, with its own loop; `call` runs a coroutine there."""

    def __init__(self, folder: Path, tls: bool = False) -> None:
        self.folder = folder
        self.socket = folder / "d.sock"
        self.tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(20)

    async def _open(self) -> None:
        self.catalog = Catalog.open(self.folder / "catalog.sqlite")
        self.events = EventLog(self.catalog)
        self.operations = FakeOperations(self.events)
        self.vms = FakeVms(self.operations)
        self.firmware = FakeFirmware(self.vms)
        self.trust = FakeTrust(self.vms, self.operations)
        self.secrets = FakeSecrets(self.vms, self.operations)
        self.checkpoints = FakeCheckpoints(self.vms, self.operations)
        self.replicas = FakeReplicas(self.operations)
        self.vm_exports = FakeVmExports(self.vms, self.operations, self.folder)
        self.disks = FakeDisks(self.vms, self.operations)
        self.images = FakeImages(self.operations)
        self.certificates = FakeCertificates(self.operations)
        self.imports = FakeImports(self.operations)
        self.vsphere = FakeVsphere(self.operations)
        self.tokens = TokenStore(self.catalog)
        certificate = load_or_make(self.folder, "127.0.0.1")
        self.fingerprint = certificate.fingerprint
        services = Services(
            vms=self.vms, disks=self.disks, firmware=self.firmware, trust=self.trust, secrets=self.secrets,
            checkpoints=self.checkpoints, exports=self.vm_exports,
            vm_counts=self.vms,
            nics=FakeNics(), usb=FakeUsb(),
            operations=self.operations,
            images=self.images, image_work=self.images,
            uploads=UploadFolder(self.folder / "uploads", reserve=0),
            imports=self.imports, fetcher=self.imports, vsphere=self.vsphere,
            certificates=self.certificates,
            switches=FakeSwitches(), pools=FakePools(),
            events=self.events, host=FakeHost(), tokens=self.tokens,
            replicas=self.replicas,
            attesting=FakeAttesting(), verifier=FakeVerifier(), attested_hosts=FakeVerifier(),
            fingerprint=certificate.fingerprint,
        )  # fmt: skip
        self.app = build_app(services)
        await self.listen()

    async def listen(self) -> None:
        context = server_context(load_or_make(self.folder, "127.0.0.1")) if self.tls else None
        self.server = ApiServer(self.app, self.socket, ("127.0.0.1", 0) if self.tls else None, context)
        await self.server.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.tcp_ports[0]}"

    def __enter__(self) -> "FakeDaemon":
        self._thread.start()
        self.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self.operations.hold.set()
            await self.server.stop(0.2)
            await asyncio.gather(*self.operations.tasks, return_exceptions=True)

        self.call(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.catalog.close()
