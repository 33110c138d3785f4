"""What the QEMU that is installed can do, asked of itself over QMP and remembered for its file.

Versions say little, since distributions leave out and backport: the schema, the list of devices
and the list of machine types decide.
"""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from holdfast.host.processes import Completed, Processes
from holdfast.machine.io_uring import io_uring_usable
from holdfast.qmp.schema import Schema
from holdfast.spec.errors import Failed, Unsupported

_FLOOR = (7, 2, 0)
_LIMIT = 60.0  # seconds; a loaded host may take long to load QEMU
_KEY_FORMAT = 3  # of what is remembered
_QUESTIONS: dict[str, dict[str, Any]] = {
    "qmp_capabilities": {},
    "query-version": {},
    "query-machines": {},
    "qom-list-types": {"implements": "device", "abstract": False},
    "query-kvm": {},
    "query-qmp-schema": {},
}
_FEATURES: dict[str, tuple[str, str, str]] = {
    # name: command, path of its argument, value that the argument must be able to have
    "mapped_ram": ("migrate-set-capabilities", "capabilities.capability", "mapped-ram"),
    "file_migration": ("migrate", "channels.addr.transport", "file"),
    "io_uring": ("blockdev-add", "aio", "io_uring"),
    "screendump_png": ("screendump", "format", "png"),
}


class QemuUnanswering(Failed):
    """It ran, but did not say what was asked; `detail` holds what it said on standard error."""

    id = "qemu-unanswering"


class QemuMissing(Unsupported):
    id = "qemu-missing"


class QemuTooOld(Unsupported):
    id = "qemu-too-old"


class FactStore(Protocol):
    """Durable memory of findings; the catalog's."""

    async def get(self, key: str) -> dict[str, Any] | None: ...
    async def put(self, key: str, value: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Capabilities:
    binary: str
    """Path at which the program was found."""
    version: tuple[int, int, int]
    machine_type: str
    """The newest versioned q35."""
    max_cpus: int
    """Of that machine type."""
    devices: frozenset[str]
    commands: frozenset[str]
    """Commands of the monitor."""
    mapped_ram: bool
    """Memory can be saved to a file of fixed size (QEMU 9.0)."""
    file_migration: bool
    """Memory can be saved to `file:` at all (QEMU 8.2)."""
    io_uring: bool
    """Disks can use io_uring: QEMU was built with it and this host allows it."""
    screendump_png: bool
    kvm: bool
    """QEMU was built with KVM; whether this host has it is another question."""

    def has_device(self, name: str) -> bool:
        return name in self.devices

    def has_command(self, name: str) -> bool:
        return name in self.commands


class CapabilityProbe:
    """Asks once for each QEMU binary; a replaced file (its time or size changed) is asked again.

    Args:
        qemu: name of the program on the PATH, or its path.
    """

    def __init__(
        self,
        processes: Processes,
        facts: FactStore,
        qemu: str = "qemu-system-x86_64",
        host_has_io_uring: Callable[[], bool] = io_uring_usable,
    ) -> None:
        self._processes = processes
        self._facts = facts
        self._qemu = qemu
        self._host_has_io_uring = host_has_io_uring
        self._known: tuple[str, Capabilities] | None = None
        self._one = asyncio.Lock()

    async def get(self) -> Capabilities:
        """What the QEMU that is found now can do.

        Raises:
            QemuMissing: none is installed.
            QemuTooOld: it is below 7.2.
            QemuUnanswering, ToolTimedOut: it does not say.
        """
        binary = shutil.which(self._qemu)
        if binary is None:
            raise QemuMissing(
                f"{self._qemu} is not installed",
                value=self._qemu,
                cure="Install the package qemu-system-x86.",
            )
        file = Path(binary).resolve()
        status = file.stat()
        key = f"qemu:{file}:{status.st_mtime_ns}:{status.st_size}:{_KEY_FORMAT}"
        async with self._one:
            if self._known is None or self._known[0] != key:
                self._known = (key, await self._learn(binary, key))
        found = self._known[1]
        if found.version < _FLOOR:
            raise QemuTooOld(
                f"QEMU {'.'.join(map(str, found.version))} is too old; 7.2 is the oldest that is supported",
                value=list(found.version),
                cure="Install a newer QEMU, on Debian from its backports.",
            )
        return found

    async def _learn(self, binary: str, key: str) -> Capabilities:
        stored = await self._facts.get(key)
        if stored is None:
            stored = await self._ask(binary)
            await self._facts.put(key, stored)
        return _capabilities(binary, stored, self._host_has_io_uring())

    async def _ask(self, binary: str) -> dict[str, Any]:
        stdin = b"".join(_wire(command, arguments) for command, arguments in _QUESTIONS.items())
        argv = (binary, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio")
        # Told to quit, or with its input at an end, it may leave before its long answers are out.
        done = await self._processes.converse(argv, owner="host", say=stdin, heard=_heard, limit=_LIMIT)
        try:
            return _distilled(_answers(done))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise QemuUnanswering(
                f"{binary} does not say what it can do (exit code {done.returncode})",
                value=binary,
                cure="Install the package qemu-system-x86 again.",
                detail={"stderr": done.stderr[-2000:].decode(errors="replace")},
            ) from error


def _wire(command: str, arguments: dict[str, Any]) -> bytes:
    told = {"execute": command, "id": command, "arguments": arguments}
    return json.dumps(told).encode() + b"\n"


def _heard(said: bytes) -> bool:
    """Whether the last question is answered."""
    if not said.endswith(b"\n"):
        return False
    with contextlib.suppress(ValueError, RecursionError):
        answers = [json.loads(line) for line in said.splitlines()[-2:]]  # an event may come last
        return any(isinstance(each, dict) and each.get("id") == list(_QUESTIONS)[-1] for each in answers)
    return False


def _answers(done: Completed) -> dict[str, Any]:
    """Answers by command; the greeting and events are passed over."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["id"]: line["return"] for line in lines if "id" in line and "return" in line}


def _distilled(answers: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the answers; JSON. ValueError, KeyError or TypeError where they are none."""
    boards = {}
    for machine in answers["query-machines"]:
        match = re.fullmatch(r"pc-q35-(\d+)\.(\d+)", machine["name"])
        if match:
            boards[int(match[1]), int(match[2])] = machine
    newest = boards[max(boards)]
    numbers = answers["query-version"]["qemu"]
    schema = Schema(answers["query-qmp-schema"])
    return {
        "version": [numbers["major"], numbers["minor"], numbers["micro"]],
        "machine_type": newest["name"],
        "max_cpus": newest["cpu-max"],
        "devices": sorted(each["name"] for each in answers["qom-list-types"]),
        "commands": sorted(schema.commands()),
        "kvm": answers["query-kvm"]["present"],
        **{name: schema.has_enum_value(*wanted) for name, wanted in _FEATURES.items()},
    }


def _capabilities(binary: str, stored: dict[str, Any], host_has_io_uring: bool) -> Capabilities:
    major, minor, micro = stored["version"]
    return Capabilities(
        binary=binary,
        version=(major, minor, micro),
        machine_type=stored["machine_type"],
        max_cpus=stored["max_cpus"],
        devices=frozenset(stored["devices"]),
        commands=frozenset(stored["commands"]),
        mapped_ram=stored["mapped_ram"],
        file_migration=stored["file_migration"],
        io_uring=stored["io_uring"] and host_has_io_uring,
        screendump_png=stored["screendump_png"],
        kvm=stored["kvm"],
    )
