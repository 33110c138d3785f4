"""Checkpoints of the fake daemon: what was asked for is kept, and what is shown is given."""

import hashlib
from pathlib import Path
from typing import Any

from holdfast.spec.checkpoint import (
    CheckpointApply,
    CheckpointChange,
    CheckpointCreate,
    CheckpointSchedule,
    CheckpointView,
)
from holdfast.spec.firmware_state import StateExport
from holdfast.spec.operation import Operation
from holdfast.spec.vm_export import VmExport

DISK = b"abc"


class FakeCheckpoints:
    def __init__(self, vms: Any, operations: Any) -> None:
        self.vms = vms
        self.operations = operations
        self.asked: list[Any] = []
        self.made: list[CheckpointView] = []
        self.planned = CheckpointSchedule()

    def _begin(self, kind: str, name: str, actor: str, *asked: Any) -> Operation:
        self.vms._get(name)
        self.asked.append(asked)
        return self.operations.begin(kind, name, actor, lambda: None)

    async def list(self, name: str) -> tuple[CheckpointView, ...]:
        self.vms._get(name)
        return tuple(self.made)

    async def show(self, name: str, checkpoint: str) -> CheckpointView:
        return next(each for each in self.made if each.name == checkpoint)

    async def create(self, name: str, request: CheckpointCreate, actor: str) -> Operation:
        return self._begin("vm.checkpoint", name, actor, request)

    async def apply(self, name: str, checkpoint: str, request: CheckpointApply, actor: str) -> Operation:
        return self._begin("vm.apply", name, actor, checkpoint, request)

    async def delete(self, name: str, checkpoint: str, subtree: bool, actor: str) -> Operation:
        return self._begin("vm.delete-checkpoint", name, actor, checkpoint, subtree)

    async def change(
        self, name: str, checkpoint: str, change: CheckpointChange, actor: str
    ) -> CheckpointView:
        self.asked.append((checkpoint, change))
        return self.made[0]

    async def schedule(self, name: str) -> CheckpointSchedule:
        return self.planned

    async def set_schedule(self, name: str, schedule: CheckpointSchedule) -> CheckpointSchedule:
        self.planned = schedule
        return schedule


class FakeVmExports:
    """The export of a VM of one disk, which is there already."""

    def __init__(self, vms: Any, operations: Any, folder: Path) -> None:
        self.vms = vms
        self.operations = operations
        self.folder = folder
        self.asked: list[VmExport] = []
        self.contents: dict[str, bytes] = {}
        self.lies = False

    async def begin(self, name: str, request: VmExport, actor: str) -> Operation:
        self.vms._get(name)
        self.asked.append(request)
        begun: Operation = self.operations.begin("vm.export", name, actor, lambda: None)
        names = [f"{name}.ovf", f"{name}.mf", f"{name}-disk0.{request.format}"]
        sums = [hashlib.sha256(DISK).hexdigest()] * 3
        if self.lies:
            sums[2] = "0" * 64
        manifest = "".join(
            f"SHA256({each})= {sums[place]}\n" for place, each in enumerate(names) if place != 1
        )
        if request.firmware_state:
            manifest += f"SHA256({name}.hfstate)= {request.firmware_state.sha256}\n"
        self.contents[f"{name}.mf"] = manifest.encode()
        files = dict.fromkeys(names, len(DISK))
        result = {"vm": name, "export": begun.id, "files": files, "order": names}
        self.operations.known[begun.id] = begun.model_copy(update={"result": result})
        return begun

    async def file(self, export: str, name: str) -> Path:
        path = self.folder / name
        path.write_bytes(self.contents.get(name, DISK))
        return path

    async def forget(self, export: str) -> None:
        pass

    async def checkpoint_state(self, name: str, checkpoint: str, request: StateExport) -> bytes:
        return b"sealed"
