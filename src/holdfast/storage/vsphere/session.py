"""A session with a vCenter or an ESXi host, by VMware's SDK for Python (vSphere Web Services API).

Everything here blocks; call in a thread. The SDK logs in again by itself where a session has run out.
What the server says is data: names are shown, never followed.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from http.cookies import CookieError, SimpleCookie
from typing import Any, ParamSpec, TypeVar
from xml.parsers.expat import ExpatError

from pyVim.connect import SmartStubAdapter, VimSessionOrientedStub
from pyVmomi import vim, vmodl

from holdfast.spec.units import MIB
from holdfast.spec.vsphere import VsphereAddress, VsphereVm
from holdfast.storage.appliances.reading import short
from holdfast.storage.vsphere.certificate import Trust
from holdfast.storage.vsphere.refusals import (
    VsphereLoginRefused,
    VsphereRefused,
    VsphereTimedOut,
    VsphereUnreachable,
    VsphereVmAmbiguous,
    VsphereVmNotFound,
)

P = ParamSpec("P")
T = TypeVar("T")
_SECONDS = 60
"""Of silence, after which a request has failed."""
_SLICE = 5
"""Seconds that one wait at the server lasts: how soon a cancel is noticed."""
_PAGE = 500
_MOST_VMS = 100_000
_COOKIE = "vmware_soap_session"
_LISTED = (
    "name",
    "runtime.powerState",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.firmware",
    "config.guestFullName",
    "config.changeTrackingEnabled",
    "config.template",
    "summary.storage.committed",
    "snapshot",
)

logging.getLogger("pyVmomi").setLevel(logging.WARNING)


class Abandoned(Exception):
    """Nobody wants the answer any more."""


class Session:
    """Open until `close`. `stop` is set by whoever no longer wants an answer."""

    def __init__(self, address: VsphereAddress, user: str, password: str, trust: Trust) -> None:
        self.address = address
        self.trust = trust
        self.stop = threading.Event()
        with self.asking():
            self._soap = SmartStubAdapter(
                host=address.host,
                port=address.port,
                sslContext=trust.context,
                httpConnectionTimeout=_SECONDS,
            )

        def login(soap: Any) -> None:
            soap.cookie = ""  # of a session that has run out; the server takes no second login in one
            content: Any = vim.ServiceInstance("ServiceInstance", soap).RetrieveContent()
            content.sessionManager.Login(user, password, None)

        self._stub = VimSessionOrientedStub(self._soap, login, retryDelay=1.0)
        with self.asking():
            self.content: Any = vim.ServiceInstance("ServiceInstance", self._stub).RetrieveContent()
            self.touch()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it ends by itself otherwise
            self.content.sessionManager.Logout()
        self._soap.DropConnections()

    def touch(self) -> None:
        """Make sure that the session lives, logging in again where it must."""
        vim.ServiceInstance("ServiceInstance", self._stub).CurrentTime()

    @property
    def cookie(self) -> str:
        """The session's own `name=value`, for the server's files by HTTP."""
        with contextlib.suppress(CookieError):
            found = SimpleCookie(self._soap.cookie).get(_COOKIE)
            if found is not None:
                return f"{_COOKIE}={found.coded_value}"
        return ""

    def object(self, kind: type[T], moid: str) -> T:
        """A managed object by its id; nothing is asked."""
        return kind(moid, self._stub)  # type: ignore[call-arg]

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Requests whose failures are refusals of this house.

        Raises VsphereLoginRefused, VsphereUnreachable, VsphereRefused.
        """
        server = self.address.server
        try:
            yield
        except (vim.fault.InvalidLogin, vim.fault.NoPermission) as fault:
            if isinstance(fault, vim.fault.NoPermission):
                raise _refused(fault, f"The user needs the privilege {fault.privilegeId!r} there.") from None
            raise VsphereLoginRefused(
                f"{server} does not accept this user and password",
                value=server,
                cure="Check both; the user of a vCenter has a domain, as in administrator@vsphere.local.",
            ) from None
        except vmodl.MethodFault as fault:
            raise _refused(fault, "See the tasks and events of the server.") from None
        except (OSError, HTTPException, ExpatError) as error:
            raise VsphereUnreachable(
                f"{server} does not answer as vSphere does: {short(str(error), 200)}",
                value=server,
                cure="Check the address, and that the server is well.",
            ) from error
        except Exception as error:
            if type(error) is not Exception:  # the SDK's own word for "no such service there"
                raise
            raise VsphereUnreachable(
                f"{server} offers no vSphere API: {short(str(error), 200)}", value=server
            ) from error

    def machines(self) -> list[VsphereVm]:
        """The inventory, by datacenter and name. Raises as `asking`."""
        with self.asking():
            found = [
                _listed(fields, _plain(datacenter), moid)
                for datacenter, root in self._datacenters()
                for moid, fields in self._collected(root, vim.VirtualMachine, _LISTED)
            ]
        return sorted(found, key=lambda each: (each.datacenter, each.name))

    def find(self, datacenter: str | None, name: str) -> tuple[str, str]:
        """Managed object id of a VM by its name or that very id, and its datacenter's path (escaped).

        Raises VsphereVmNotFound, VsphereVmAmbiguous, and as `asking`.
        """
        with self.asking():
            found = [
                (moid, place)
                for place, root in self._datacenters()
                if datacenter is None or datacenter in (_plain(place), _plain(place.rpartition("/")[2]))
                for moid, fields in self._collected(root, vim.VirtualMachine, ("name",))
                if name in (_plain(fields.get("name", "")), moid)
            ]
        if not found:
            raise VsphereVmNotFound(
                f"{self.address.server} has no VM {name!r}",
                value=name,
                cure=f"See what it has: `holdfast vm import vsphere://{self.address.server}/ --list`.",
            )
        if len(found) > 1:
            raise VsphereVmAmbiguous(
                f"{self.address.server} has {len(found)} VMs named {name!r}",
                value=name,
                cure=f"Name its datacenter, or one of the ids {', '.join(moid for moid, _ in found[:8])}.",
                detail={"ids": [moid for moid, _ in found[:64]]},
            )
        return found[0]

    def wait(self, watched: Any, path: str, done: Callable[[Any], bool], limit: float) -> Any:
        """The value of a property once `done` is true of it (PropertyCollector.WaitForUpdatesEx).

        Raises VsphereTimedOut, Abandoned (somebody set `stop`), and as `asking`.
        """
        deadline = time.monotonic() + limit
        with self.asking():
            collector = self.content.propertyCollector.CreatePropertyCollector()
            try:
                collector.CreateFilter(_filter_of(watched, path), partialUpdates=False)
                version = ""
                while True:
                    self._require_wanted()
                    options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=_SLICE)
                    update = collector.WaitForUpdatesEx(version, options)
                    if update is not None:
                        version = update.version
                        for value in _values(update, path):
                            if done(value):
                                return value
                    if time.monotonic() > deadline:
                        raise VsphereTimedOut(
                            f"{self.address.server} did not get done within {limit:g} s",
                            value=limit,
                            cure="See the tasks and events of the server.",
                        )
            finally:
                with contextlib.suppress(vmodl.MethodFault, OSError):
                    collector.Destroy()

    def finish(self, task: Any, limit: float = 3600.0) -> Any:
        """The result of a task. Raises VsphereTimedOut, Abandoned, and as `asking`."""
        ended = (vim.TaskInfo.State.success, vim.TaskInfo.State.error)
        self.wait(task, "info.state", lambda state: state in ended, limit)
        found = self.properties(task, "info.state", "info.result", "info.error")
        if found.get("info.state") == vim.TaskInfo.State.error:
            with self.asking():
                raise found["info.error"]
        return found.get("info.result")

    def properties(self, owner: Any, *paths: str) -> dict[str, Any]:
        """Of one object, by one request; what is not set is left out. Raises as `asking`."""
        query = vmodl.query.PropertyCollector
        with self.asking():
            page = self.content.propertyCollector.RetrievePropertiesEx(
                [_filter_of(owner, *paths)], query.RetrieveOptions()
            )
        found = page.objects[0].propSet if page is not None and page.objects else ()
        return {each.name: each.val for each in found or ()}

    def _require_wanted(self) -> None:
        if self.stop.is_set():
            raise Abandoned

    def _datacenters(self) -> list[tuple[str, Any]]:
        """Their paths (`folder/name`, names as the server escapes them) and objects."""
        named = self._collected(self.content.rootFolder, vim.Datacenter, ("name", "parent"))
        return [(self._path(fields), self.object(vim.Datacenter, moid)) for moid, fields in named]

    def _path(self, fields: dict[str, Any]) -> str:
        parts, parent = [str(fields.get("name", ""))], fields.get("parent")
        while parent is not None and parent._moId != self.content.rootFolder._moId and len(parts) < 32:
            above = self.properties(parent, "name", "parent")
            parts.insert(0, str(above.get("name", "")))
            parent = above.get("parent")
        return "/".join(parts)

    def _collected(
        self, root: Any, kind: Any, paths: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and properties of every object of a kind under `root` (one view, in pages)."""
        query = vmodl.query.PropertyCollector
        view = self.content.viewManager.CreateContainerView(container=root, type=[kind], recursive=True)
        try:
            into = query.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
            spec = query.FilterSpec(
                objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[into])],
                propSet=[query.PropertySpec(type=kind, pathSet=list(paths))],
            )
            collector = self.content.propertyCollector
            page = collector.RetrievePropertiesEx([spec], query.RetrieveOptions(maxObjects=_PAGE))
            seen = 0
            while page is not None:
                for each in page.objects:
                    seen += 1
                    yield each.obj._moId, {prop.name: prop.val for prop in each.propSet or ()}
                if not page.token or seen > _MOST_VMS:
                    return
                self._require_wanted()
                page = collector.ContinueRetrievePropertiesEx(page.token)
        finally:
            with contextlib.suppress(vmodl.MethodFault, OSError):
                view.DestroyView()


async def asked(session: Session, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run `work` in a thread; where the caller is cancelled, its waits at the server are given up."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **named))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        session.stop.set()
        await asyncio.wait({running})
        running.exception()  # told to nobody any more
        raise


def _filter_of(watched: Any, *paths: str) -> Any:
    query = vmodl.query.PropertyCollector
    return query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=watched)],
        propSet=[query.PropertySpec(type=type(watched), pathSet=list(paths), all=False)],
    )


def _values(update: Any, path: str) -> Iterator[Any]:
    for each in update.filterSet or ():
        for changed in each.objectSet or ():
            for change in changed.changeSet or ():
                if change.name == path and change.val is not None:
                    yield change.val


def _listed(fields: dict[str, Any], datacenter: str, moid: str) -> VsphereVm:
    return VsphereVm(
        name=short(_plain(fields.get("name", "")), 255),
        datacenter=short(datacenter, 255),
        id=moid,
        running=fields.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff,
        cpus=int(fields.get("config.hardware.numCPU") or 0),
        memory=int(fields.get("config.hardware.memoryMB") or 0) * MIB,
        firmware=str(fields.get("config.firmware") or ""),
        guest=short(str(fields.get("config.guestFullName") or ""), 128),
        storage=int(fields.get("summary.storage.committed") or 0),
        change_tracking=bool(fields.get("config.changeTrackingEnabled")),
        snapshots=fields.get("snapshot") is not None,
        template=bool(fields.get("config.template")),
    )


def _plain(name: str) -> str:
    """A name as people see it: the server escapes %, / and backslash in it."""
    for escaped, plain in (("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\"), ("%25", "%")):
        name = name.replace(escaped, plain)
    return name


def _refused(fault: Any, cure: str) -> VsphereRefused:
    kind = type(fault).__name__.rpartition(".")[2]
    said = short(str(getattr(fault, "msg", "") or getattr(fault, "reason", "") or ""), 300)
    return VsphereRefused(f"the server refused ({kind}){': ' if said else ''}{said}", value=kind, cure=cure)
