"""Disks of the fake daemon: what was asked for is kept."""

from typing import Any

from holdfast.spec.disk_requests import DiskAdd, DiskBusChange, DiskGrow, DiskMove, DiskView, IoLimitsChange
from holdfast.spec.operation import Operation
from holdfast.spec.vm import DiskBus, IoLimits


class FakeDisks:
    """The disks of one VM; what is asked for is kept."""

    def __init__(self, vms: Any, operations: Any) -> None:
        self.vms = vms
        self.operations = operations
        self.asked: list[Any] = []
        self.limits = IoLimits()
        self.bus = DiskBus.VIRTIO

    def _view(self, disk: str) -> DiskView:
        return DiskView(
            id=disk, bus=self.bus, size=1 << 30, stored=1 << 20, pool=None, image=None, device=None,
            layers=(disk,), limits=self.limits, plugged=True, after_next_start=True, notices=("\x1b[31mred",),
        )  # fmt: skip

    def _begin(self, kind: str, name: str, actor: str, result: dict[str, Any]) -> Operation:
        begun: Operation = self.operations.begin(kind, self.vms._get(name).name, actor, lambda: None)
        self.operations.known[begun.id] = begun.model_copy(update={"result": result})
        return begun

    async def show(self, name: str, disk: str) -> DiskView:
        self.vms._get(name)
        return self._view(disk)

    async def add(self, name: str, request: DiskAdd, actor: str) -> Operation:
        self.asked.append(request)
        told = {"guest_sees": True, "guest_name": "/dev/vdb", "notices": []}
        return self._begin("disk.add", name, actor, {"disk": {"id": "disk1"}, **told})

    async def remove(self, name: str, disk: str, keep: bool, force: bool, actor: str) -> Operation:
        self.asked.append((disk, keep, force))
        return self._begin(
            "disk.remove", name, actor, {"disk_id": disk, "waits": force, "kept": "/x" if keep else None}
        )

    async def grow(self, name: str, disk: str, request: DiskGrow, actor: str) -> Operation:
        return self._begin(
            "disk.grow", name, actor, {"disk_id": disk, "size": request.size, "guest_sees": False}
        )

    async def move(self, name: str, disk: str, request: DiskMove, actor: str) -> Operation:
        self.asked.append(request)
        return self._begin("disk.move", name, actor, {"disk_id": disk, "pool": request.to})

    async def limit(self, name: str, disk: str, change: IoLimitsChange) -> DiskView:
        self.limits = change.applied(self.limits)
        return self._view(disk)

    async def change_bus(self, name: str, disk: str, request: DiskBusChange) -> DiskView:
        self.bus = request.bus
        return self._view(disk)

    async def list(self, name: str) -> tuple[DiskView, ...]:
        self.vms._get(name)
        return (self._view("disk0"), self._view("disk1"))
