"""What the QEMU that is installed can do, asked of itself over QMP."""

import json
import re
from dataclasses import dataclass

from holdfast.host.processes import Processes
from holdfast.spec.errors import Failed


class QemuUnanswering(Failed):
    id = "qemu-unanswering"


@dataclass(frozen=True)
class Capabilities:
    version: tuple[int, int]
    machine_type: str
    """The newest versioned q35."""


async def ask(processes: Processes) -> Capabilities:
    """Raises QemuUnanswering, ProgramMissing or ToolTimedOut."""
    commands = ("qmp_capabilities", "query-version", "query-machines", "quit")
    stdin = "".join(json.dumps({"execute": name}) + "\n" for name in commands).encode()
    argv = ("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
    done = await processes.run(argv, owner="host", stdin=stdin, timeout=20)
    try:
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        _, version, machines = [answer["return"] for answer in answers if "return" in answer][:3]
        found = [re.fullmatch(r"pc-q35-(\d+)\.(\d+)", machine["name"]) for machine in machines]
        newest = max((int(match[1]), int(match[2])) for match in found if match)
        numbers = version["qemu"]["major"], version["qemu"]["minor"]
    except (ValueError, KeyError, TypeError) as error:
        raise QemuUnanswering("QEMU does not say what it can do", value=argv[0]) from error
    return Capabilities(numbers, f"pc-q35-{newest[0]}.{newest[1]}")
