"""LVM's own program, as far as pools need it (lvm(8), lvmreport(7)). No state."""

import json
from typing import Any, Protocol

from holdfast.host.processes import Processes
from holdfast.host.space import NoSpace
from holdfast.spec.errors import Failed

_SECONDS = 60.0


class LvmFailed(Failed):
    id = "lvm-failed"


class Lvm(Protocol):
    async def run(self, *arguments: str) -> str:
        """What `lvm ARGUMENTS` writes to its output. Raises LvmFailed, NoSpace, ProgramMissing."""
        ...


class LvmProgram:
    """The one that is installed."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def run(self, *arguments: str) -> str:
        done = await self._processes.run(["lvm", *arguments], owner="host", timeout=_SECONDS)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        last = said.splitlines()[-1].strip() if said else f"it ended with status {done.returncode}"
        kind = NoSpace if "insufficient free space" in said.lower() else LvmFailed
        raise kind(
            f"lvm {arguments[0]} failed: {last}",
            value=arguments[0],
            cure="Look at the group with `vgs` and `lvs -a`, and in the kernel's log.",
            detail={"log": said},
        )


async def report(lvm: Lvm, kind: str, columns: str, where: str) -> list[dict[str, Any]]:
    """Rows of `lvs` or `vgs`; sizes are whole numbers of bytes as text."""
    arguments = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns, where)
    text = await lvm.run(f"{kind}s", *arguments)
    try:
        return [dict(row) for row in json.loads(text)["report"][0][kind]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LvmFailed(f"lvm's report on {where} could not be read", value=where) from error
