"""What the QEMU that is installed can do, asked of itself over QMP and remembered for its file."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from holdfast.host.processes import Processes
from holdfast.spec.errors import Failed, Unsupported

_QEMU = "qemu-system-x86_64"
_FLOOR = (7, 2, 0)
_COMMANDS = (
    "qmp_capabilities",
    "query-version",
    "query-machines",
    "qom-list-types",
    "query-qmp-schema",
    "quit",
)


class QemuUnanswering(Failed):
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
    version: tuple[int, int, int]
    machine_type: str
    """The newest versioned q35."""
    max_cpus: int
    """Of that machine type."""
    devices: frozenset[str]
    mapped_ram: bool
    """Memory can be saved to a file of fixed size (QEMU 9.0)."""

    def has_device(self, name: str) -> bool:
        return name in self.devices


class CapabilityProbe:
    """Asks once for each QEMU binary; a replaced file (its time or size changed) is asked again."""

    def __init__(self, processes: Processes, facts: FactStore) -> None:
        self._processes = processes
        self._facts = facts
        self._known: tuple[str, Capabilities] | None = None

    async def get(self) -> Capabilities:
        """Raises QemuMissing, QemuTooOld, QemuUnanswering or ToolTimedOut."""
        binary = shutil.which(_QEMU)
        if binary is None:
            raise QemuMissing(
                f"{_QEMU} is not installed", value=_QEMU, cure="Install the package qemu-system-x86."
            )
        status = Path(binary).resolve().stat()
        key = f"qemu:{binary}:{status.st_mtime_ns}:{status.st_size}:2"
        if self._known is None or self._known[0] != key:
            stored = await self._facts.get(key)
            if stored is None:
                stored = await self._ask(binary)
                await self._facts.put(key, stored)
            self._known = (key, _capabilities(binary, stored))
        found = self._known[1]
        if found.version < _FLOOR:
            raise QemuTooOld(
                f"QEMU {'.'.join(map(str, found.version))} is too old; 7.2 is the oldest that is supported",
                value=list(found.version),
                cure="Install a newer QEMU, on Debian from its backports.",
            )
        return found

    async def _ask(self, binary: str) -> dict[str, Any]:
        stdin = "".join(json.dumps({"execute": name}) + "\n" for name in _COMMANDS).encode()
        argv = (binary, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
        answered = bytearray()
        await self._processes.run(argv, owner="host", stdin=stdin, timeout=60, on_stdout=answered.extend)
        try:
            lines = [json.loads(line) for line in answered.splitlines()]
            answers = [line["return"] for line in lines if "return" in line]
            return _distilled(*answers[1:5])
        except (ValueError, KeyError, TypeError) as error:
            raise QemuUnanswering("QEMU does not say what it can do", value=binary) from error


def _distilled(version: Any, machines: Any, types: Any, schema: Any) -> dict[str, Any]:
    """What is kept of the answers; JSON."""
    boards = {}
    for machine in machines:
        match = re.fullmatch(r"pc-q35-(\d+)\.(\d+)", machine["name"])
        if match:
            boards[int(match[1]), int(match[2])] = machine
    newest = boards[max(boards)]
    enums = {value for entry in schema if entry["meta-type"] == "enum" for value in entry["values"]}
    numbers = version["qemu"]
    return {
        "version": [numbers["major"], numbers["minor"], numbers["micro"]],
        "machine_type": newest["name"],
        "max_cpus": newest["cpu-max"],
        "devices": sorted(each["name"] for each in types),
        "mapped_ram": "mapped-ram" in enums,
    }


def _capabilities(binary: str, stored: dict[str, Any]) -> Capabilities:
    major, minor, micro = stored["version"]
    return Capabilities(
        binary=binary,
        version=(major, minor, micro),
        machine_type=stored["machine_type"],
        max_cpus=stored["max_cpus"],
        devices=frozenset(stored["devices"]),
        mapped_ram=stored["mapped_ram"],
    )
