"""A server that answers as a vCenter does, as far as the code here asks: SOAP, datastore files, exports.

Answers are serialised by VMware's own SDK from its own types. It is no proof that a real vCenter does the
same; what it is faithful to is the published interface.
"""

import datetime
import ipaddress
import re
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyVmomi import SoapAdapter, vim, vmodl
from pyVmomi.VmomiSupport import F_OPTIONAL, GetVmodlType, Object
from vsphere_vms import FakeSnapshot, FakeVm, complete, stream_optimized

from holdfast.storage.vsphere.certificate import thumbprint_of

USER, PASSWORD = "importer@vsphere.local", "correct horse & <battery>"
_VERSION = "vim.version.v8_0_3_0"
_VERSIONS = (
    '<?xml version="1.0"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    "<version>8.0.3.0</version><priorVersions/></namespace></namespaces>"
)
_SPACES = (
    'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
)
_OPEN = ("ServiceInstance", "SessionManager")
_QUERY = vmodl.query.PropertyCollector


@dataclass
class Trouble:
    """What goes wrong on purpose; counted down where it is a number."""

    drops: int = 0
    """Answers with content that end in the middle."""
    no_ranges: bool = False
    """Datastores cannot be read by HTTP."""
    lease_ends: int = 0
    """Exports that the server ends while they are read."""
    forget_changes: bool = False
    """No change id is known any more."""
    never_off: bool = False
    throttle: float = 0.0
    """Seconds before each answer with content."""


@dataclass
class FakeVsphere:
    vms: list[FakeVm]
    trouble: Trouble = field(default_factory=Trouble)
    asked: list[str] = field(default_factory=list)
    """Methods, and paths with what of them was read."""
    on_round: Any = None
    """Called with the VM when a snapshot of it is removed: a guest that goes on writing."""
    port: int = 0
    thumbprint: str = ""
    objects: dict[str, Any] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    count: int = 0

    def new(self, kind: str, value: Any) -> str:
        self.count += 1
        moid = f"{kind}-{self.count}"
        self.objects[moid] = value
        return moid

    def vm(self, moid: str) -> FakeVm:
        return next(each for each in self.vms if each.moid == moid)

    @property
    def address(self) -> str:
        return f"vsphere://127.0.0.1:{self.port}"

    # Properties of managed objects

    def value(self, moid: str, path: str) -> Any:
        if moid.startswith("vm-"):
            found: Any = self._vm_value(self.vm(moid), path)
        else:
            found = self._object_value(moid, path)
        return found

    def _object_value(self, moid: str, path: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("SessionManager", "currentSession"): None,
            ("ServiceInstance", "content"): _content(),
            ("datacenter-2", "name"): "Lab %2f One",
            ("datacenter-2", "parent"): vim.Folder("group-d1"),
        }
        if (moid, path) in known:
            return known[moid, path]
        if moid.startswith("snapshot-"):
            vm, snapshot = self.objects[moid]
            return {"config.hardware": vm.settings(snapshot).hardware}[path]
        return self.objects[moid][path]

    def _vm_value(self, vm: FakeVm, path: str) -> Any:
        state = vim.VirtualMachine.PowerState
        power = state.poweredOn if vm.running else state.poweredOff
        if path.startswith("config"):
            value: Any = vm.settings()
            for part in path.split(".")[1:]:
                value = getattr(value, part)
            return value
        tree = [
            vim.vm.SnapshotTree(
                snapshot=vim.vm.Snapshot(each.moid), vm=vim.VirtualMachine(vm.moid), name=each.name,
                description="", id=1, createTime=datetime.datetime.now(datetime.UTC),
                state=power, quiesced=False,
            )
            for each in [*([FakeSnapshot("snapshot-0", "before", {}, {})] if vm.below else []), *vm.snapshots]
        ]  # fmt: skip
        found: dict[str, Any] = {
            "name": vm.name,
            "runtime.powerState": power,
            "guest.toolsRunningStatus": "guestToolsRunning" if vm.tools else "guestToolsNotRunning",
            "network": [],
            "layoutEx": None,
            "summary.storage.committed": sum(len(each.content) for each in vm.disks),
            "snapshot": vim.vm.SnapshotInfo(rootSnapshotList=tree) if tree else None,
        }
        return found[path]

    # Methods

    def call(self, method: str, this: str, body: ElementTree.Element) -> tuple[Any, Any]:
        """Type and value of what a method returns; faults are raised."""
        self.asked.append(method)
        handler = getattr(self, f"do_{method}", None)
        if handler is None:
            raise vmodl.fault.MethodNotFound(receiver=vim.ServiceInstance("ServiceInstance"), method=method)
        answer: tuple[Any, Any] = handler(this, body)
        return answer

    def do_RetrieveServiceContent(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return vim.ServiceInstanceContent, _content()

    def do_Login(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        if (_text(body, "userName"), _text(body, "password")) != (USER, PASSWORD):
            raise vim.fault.InvalidLogin()
        now = datetime.datetime.now(datetime.UTC)
        session = vim.UserSession(
            key=self.new("session", {}), userName=USER, fullName=USER, loginTime=now, lastActiveTime=now,
            locale="en", messageLocale="en",
        )  # fmt: skip
        return vim.UserSession, session

    def do_Logout(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return type(None), None

    def do_CurrentTime(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return datetime.datetime, datetime.datetime.now(datetime.UTC)

    def do_Fetch(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        value = self.value(this, _text(body, "prop"))
        return type(value), value

    def do_CreateContainerView(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return vim.view.ContainerView, vim.view.ContainerView(self.new("view", {"type": _text(body, "type")}))

    def do_DestroyView(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return type(None), None

    def do_RetrievePropertiesEx(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        kind = _text(body, "specSet/propSet/type")
        paths = [each.text or "" for each in _all(body, "specSet/propSet/pathSet")]
        asked = _text(body, "specSet/objectSet/obj")
        moids = ["datacenter-2"] if kind == "Datacenter" else [each.moid for each in self.vms]
        moids = moids if asked.startswith("view-") else [asked]
        cls = vim.Datacenter if kind == "Datacenter" else vim.VirtualMachine
        objects = []
        for moid in moids:
            values = [(path, self.value(moid, path) or None) for path in paths]
            found = [
                vmodl.DynamicProperty(name=path, val=value) for path, value in values if value is not None
            ]
            objects.append(vmodl.query.PropertyCollector.ObjectContent(obj=cls(moid), propSet=found))
        # In pages of one, so that going on is seen.
        token = self.new("page", objects[1:]) if objects[1:] else None
        return _QUERY.RetrieveResult, _QUERY.RetrieveResult(token=token, objects=objects[:1])

    def do_ContinueRetrievePropertiesEx(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        objects = self.objects.pop(_text(body, "token"))
        token = self.new("page", objects[1:]) if objects[1:] else None
        return _QUERY.RetrieveResult, _QUERY.RetrieveResult(token=token, objects=objects[:1])

    def do_CreatePropertyCollector(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return _QUERY, _QUERY(self.new("collector", {}))

    def do_DestroyPropertyCollector(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        return type(None), None

    def do_CreateFilter(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        watched = (_text(body, "spec/objectSet/obj"), _text(body, "spec/propSet/pathSet"))
        self.objects[this]["watched"] = watched
        return _QUERY.Filter, _QUERY.Filter(self.new("filter", {}))

    def do_WaitForUpdatesEx(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        moid, path = self.objects[this]["watched"]
        deadline = time.monotonic() + float(_text(body, "options/maxWaitSeconds") or 1)
        seen = _text(body, "version")
        while True:
            value = self.value(moid, path)
            version = f"v{hash(str(value)) & 0xFFFFFF}"
            if version != seen:
                break
            if time.monotonic() > deadline:
                return type(None), None
            time.sleep(0.02)
        change = _QUERY.Change(name=path, op="assign", val=value)
        update = _QUERY.ObjectUpdate(kind="enter", obj=vim.Task(moid), changeSet=[change])
        filters = [_QUERY.FilterUpdate(filter=_QUERY.Filter("filter"), objectSet=[update])]
        return _QUERY.UpdateSet, _QUERY.UpdateSet(version=version, filterSet=filters)

    def _task(self, result: Any = None, fault: Any = None) -> tuple[Any, Any]:
        state = vim.TaskInfo.State
        moid = self.new("task", {})
        self.objects[moid] |= {
            "info.state": state.error if fault else state.success,
            "info.result": result,
            "info.error": fault,
        }
        return vim.Task, vim.Task(moid)

    def do_CreateSnapshot_Task(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm = self.vm(this)
        if _text(body, "quiesce") == "true" and not vm.tools:
            return self._task(fault=vim.fault.ApplicationQuiesceFault(msg="no tools"))
        content = {each.key: bytes(each.content) for each in vm.disks}
        writes = {each.key: len(each.writes) for each in vm.disks}
        snapshot = FakeSnapshot("", _text(body, "name"), content, writes)
        snapshot.moid = self.new("snapshot", (vm, snapshot))
        vm.snapshots.append(snapshot)
        return self._task(vim.vm.Snapshot(snapshot.moid))

    def do_RemoveSnapshot_Task(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm, snapshot = self.objects.get(this, (None, None))
        if snapshot is None or snapshot not in vm.snapshots:
            raise vmodl.fault.ManagedObjectNotFound(obj=vim.vm.Snapshot(this))
        vm.snapshots.remove(snapshot)
        if self.on_round:
            self.on_round(vm)
        return self._task()

    def do_QueryChangedDiskAreas(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm, snapshot = self.objects[_text(body, "snapshot")]
        key, at, since = (
            int(_text(body, "deviceKey")),
            int(_text(body, "startOffset")),
            _text(body, "changeId"),
        )
        disk = next(each for each in vm.disks if each.key == key)
        if self.trouble.forget_changes and since != "*":
            raise vim.fault.FileFault(file="x", msg="change tracking was reset")
        until = snapshot.writes[key]
        areas = disk.changed(0 if since == "*" else int(since.rpartition("/")[2]), until)
        # Half of the disk an answer, so that going on is seen.
        stop = min(len(disk.content), at + len(disk.content) // 2)
        changed = [
            vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=start, length=length)
            for start, length in areas
            if at <= start < stop
        ]
        info = vim.VirtualMachine.DiskChangeInfo(startOffset=at, length=stop - at, changedArea=changed)
        return vim.VirtualMachine.DiskChangeInfo, info

    def do_ShutdownGuest(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm = self.vm(this)
        if not self.trouble.never_off:
            threading.Timer(0.1, setattr, (vm, "running", False)).start()
        return type(None), None

    def do_PowerOnVM_Task(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        self.vm(this).running = True
        return self._task()

    def do_ExportVm(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm = self.vm(this)
        if vm.running:
            raise vim.fault.InvalidPowerState(existingState="poweredOn", requestedState="poweredOff")
        return self._export(vm, {each.key: bytes(each.content) for each in vm.disks})

    def do_ExportSnapshot(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        vm, snapshot = self.objects[this]
        return self._export(vm, snapshot.content)

    def _export(self, vm: FakeVm, content: dict[int, bytes]) -> tuple[Any, Any]:
        states = vim.HttpNfcLease.State
        moid = self.new("lease", {"state": states.ready, "error": None})
        streams = [stream_optimized(each) for each in content.values()]
        urls = [
            vim.HttpNfcLease.DeviceUrl(
                key=f"/{vm.moid}/ParaVirtualSCSIController0:{index}",
                importKey=f"/{vm.name}/ParaVirtualSCSIController0:{index}",
                url=f"https://*:{self.port}/nfc/{moid}/disk-{index}.vmdk",
                sslThumbprint="",
                disk=True,
            )
            for index in range(len(streams))
        ]
        self.objects[moid] |= {
            "streams": streams,
            "info": vim.HttpNfcLease.Info(
                lease=vim.HttpNfcLease(moid), entity=vim.VirtualMachine(vm.moid), deviceUrl=urls,
                totalDiskCapacityInKB=0, leaseTimeout=4,
            ),
        }  # fmt: skip
        return vim.HttpNfcLease, vim.HttpNfcLease(moid)

    def _leased(self, this: str) -> None:
        if self.objects[this].get("ended"):
            raise vmodl.fault.ManagedObjectNotFound(obj=vim.HttpNfcLease(this), msg="the lease has expired")

    def do_HttpNfcLeaseProgress(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        self._leased(this)
        return type(None), None

    def do_HttpNfcLeaseComplete(self, this: str, body: Any) -> tuple[Any, Any]:  # noqa: N802
        self._leased(this)
        self.objects[this]["ended"] = True
        return type(None), None

    do_HttpNfcLeaseAbort = do_HttpNfcLeaseComplete  # noqa: N815

    # Content

    def flat(self, path: str) -> bytes | None:
        """Of `/folder/NAME/NAME-flat.vmdk`: what the file holds, which is what the only snapshot shows."""
        for vm in self.vms:
            for index, disk in enumerate(vm.disks):
                if path == f"/folder/{vm.name}/{vm.name}{f'_{index}' if index else ''}-flat.vmdk":
                    locked = self.trouble.no_ranges or vm.below or len(vm.snapshots) != 1
                    return None if locked else vm.snapshots[0].content[disk.key]
        return None

    def stream(self, path: str) -> bytes | None:
        found = re.fullmatch(r"/nfc/(lease-\d+)/disk-(\d+)\.vmdk", path)
        if not found or self.objects[found[1]].get("ended"):
            return None
        if self.trouble.lease_ends:
            self.trouble.lease_ends -= 1
            self.objects[found[1]]["ended"] = True
            data: bytes = self.objects[found[1]]["streams"][int(found[2])]
            return data[: len(data) // 2]
        return bytes(self.objects[found[1]]["streams"][int(found[2])])


def _content() -> Any:
    about = vim.AboutInfo(
        name="Fake", fullName="Fake", vendor="Holdfast", version="8.0.3", build="1", osType="linux",
        productLineId="vpx", apiType="VirtualCenter", apiVersion="8.0.3.0",
    )  # fmt: skip
    return vim.ServiceInstanceContent(
        about=about,
        rootFolder=vim.Folder("group-d1"),
        propertyCollector=_QUERY("propertyCollector"),
        viewManager=vim.view.ViewManager("ViewManager"),
        sessionManager=vim.SessionManager("SessionManager"),
    )


def _text(body: ElementTree.Element, path: str) -> str:
    found = _all(body, path)
    return (found[0].text or "") if found else ""


def _all(body: ElementTree.Element, path: str) -> list[ElementTree.Element]:
    return body.findall("/".join(f"{{urn:vim25}}{each}" for each in path.split("/")))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeVsphere

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # whoever does not trust the certificate hangs up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def fake(self) -> FakeVsphere:
        assert isinstance(self.server, _Server)
        return self.server.fake

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        method = ElementTree.fromstring(raw)[-1][0]
        name, this = method.tag.partition("}")[2], _text(method, "_this")
        try:
            if name not in ("RetrieveServiceContent", "Login") and this not in _OPEN:
                self._require_session()
            kind, value = self.fake.call(name, this, method)
        except vmodl.MethodFault as fault:
            self._send(500, _fault(fault).encode())
            return
        cookie = None
        if name == "Login":
            self.fake.sessions.add(value.key)
            cookie = f'vmware_soap_session="{value.key}"; Path=/; HttpOnly; Secure;'
        returned = ""
        if value is not None:
            info = Object(name="returnval", type=kind, version=_VERSION, flags=F_OPTIONAL)
            returned = SoapAdapter.SerializeToStr(complete(value), info, _VERSION)
        body = f'<{name}Response xmlns="urn:vim25">{returned}</{name}Response>'
        self._send(200, _envelope(body).encode(), cookie)

    def _require_session(self) -> None:
        sent = re.search(r'vmware_soap_session="?([\w-]+)"?', self.headers.get("Cookie", ""))
        if not sent or sent[1] not in self.fake.sessions:
            raise vim.fault.NotAuthenticated(object=vim.Folder("group-d1"), privilegeId="System.View")

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/sdk/vimServiceVersions.xml":
            self._send(200, _VERSIONS.encode())
            return
        try:
            self._require_session()
        except vim.fault.NotAuthenticated:
            self._send(401, b"")
            return
        time.sleep(self.fake.trouble.throttle)
        path = unquote(parts.path)
        self.fake.asked.append(f"{path} {self.headers.get('Range', 'whole')}")
        if path.startswith("/folder/"):
            self._ranged(self.fake.flat(path), parse_qs(parts.query))
        else:
            content = self.fake.stream(path)
            self._content(200 if content is not None else 404, content or b"")

    def _ranged(self, content: bytes | None, query: dict[str, list[str]]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if content is None or not asked or query != {"dcPath": ["Lab %2f One"], "dsName": ["datastore1"]}:
            self._send(404, b"")
            return
        first, last = int(asked[1]), int(asked[2])
        where = f"bytes {first}-{last}/{len(content)}"
        self._content(206, content[first : last + 1], where)

    def _content(self, status: int, data: bytes, where: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if where:
            self.send_header("Content-Range", where)
        self.end_headers()
        if self.fake.trouble.drops and len(data) > 4096:
            self.fake.trouble.drops -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def _send(self, status: int, data: bytes, cookie: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(data)))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(data)


def _envelope(body: str) -> str:
    return f"<soapenv:Envelope {_SPACES}><soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>"


def _fault(fault: Any) -> str:
    name = type(fault).__name__.rpartition(".")[2]
    info = Object(name=f"{name}Fault", type=GetVmodlType("vmodl.MethodFault"), version=_VERSION, flags=0)
    detail = SoapAdapter.SerializeFaultDetail(fault, info, _VERSION)
    said = SoapAdapter.XmlEscape(fault.msg or name)
    return _envelope(
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{said}</faultstring>"
        f"<detail>{detail}</detail></soapenv:Fault>"
    )


def certificate(folder: Path) -> tuple[Path, str]:
    """A file with a self-signed certificate and its key, and the thumbprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcenter.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "vcenter.pem"
    path.write_bytes(plain + made.public_bytes(serialization.Encoding.PEM))
    return path, thumbprint_of(made.public_bytes(serialization.Encoding.DER))


@contextmanager
def serving(fake: FakeVsphere, folder: Path) -> Iterator[FakeVsphere]:
    """The fake on loopback by TLS, until the end of the block."""
    pem, fake.thumbprint = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.fake = fake
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    fake.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
