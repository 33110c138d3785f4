"""The guest agent (QEMU, docs/interop/qemu-ga-ref): JSON lines over its UNIX socket.

The guest is hostile: lines and time are bounded, garbage before the sync marker is skipped. Each
command has a connection of its own, so that a late answer to an abandoned one is never taken.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.spec.errors import Failed, TimedOut

_MOST = 8 * 1024 * 1024


class AgentSilent(TimedOut):
    id = "guest-agent-silent"


class AgentRefused(Failed):
    id = "guest-agent-refused"


class AgentNonsense(Failed):
    id = "guest-agent-nonsense"


@dataclass(frozen=True)
class GuestExec:
    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool


class GuestAgent:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._one = asyncio.Lock()

    async def call(self, command: str, limit: float = 10.0, **arguments: Any) -> Any:
        """One command within `limit` seconds; `_` in an argument's name stands for `-`.

        Raises AgentSilent, AgentRefused or AgentNonsense.
        """
        try:
            async with asyncio.timeout(limit), self._one:
                answer = await self._exchange(command, arguments)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise AgentSilent("the guest agent does not answer", value=command) from error
        except (ValueError, RecursionError, asyncio.LimitOverrunError) as error:
            raise AgentNonsense("the guest agent's answer cannot be read", value=command) from error
        if not isinstance(answer, dict) or not {"return", "error"} & answer.keys():
            raise AgentNonsense("the guest agent's answer cannot be read", value=command)
        if "error" in answer:
            raise AgentRefused(
                f"the guest agent refused {command}: {str(answer['error'])[:500]}", value=command
            )
        return answer["return"]

    async def _exchange(self, command: str, arguments: dict[str, Any], answered: bool = True) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=_MOST)
        try:
            token = secrets.randbelow(1 << 53)
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            writer.write(b"\xff" + json.dumps(sync).encode() + b"\n")
            while True:
                await reader.readuntil(b"\xff")
                with contextlib.suppress(ValueError, RecursionError):
                    if json.loads(await reader.readuntil(b"\n")) == {"return": token}:
                        break
            wire = {name.replace("_", "-"): value for name, value in arguments.items()}
            writer.write(json.dumps({"execute": command, "arguments": wire}).encode() + b"\n")
            await writer.drain()
            return json.loads(await reader.readuntil(b"\n")) if answered else None
        finally:
            writer.close()

    async def ping(self, limit: float = 5.0) -> None:
        await self.call("guest-ping", limit)

    async def shutdown(self, limit: float = 10.0) -> None:
        """Ask for a power-off. The agent sends no answer to it."""
        try:
            async with asyncio.timeout(limit), self._one:
                await self._exchange("guest-shutdown", {"mode": "powerdown"}, answered=False)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise AgentSilent("the guest agent does not answer", value="guest-shutdown") from error

    async def execute(self, argv: Sequence[str], limit: float, stdin: bytes = b"") -> GuestExec:
        """Run a program in the guest and wait for it, `limit` seconds at most."""
        data = base64.b64encode(stdin).decode()
        wanted = {"path": argv[0], "arg": list(argv[1:]), "capture_output": True, "input_data": data}
        try:
            async with asyncio.timeout(limit):
                pid = (await self.call("guest-exec", limit, **wanted))["pid"]
                pause = 0.05
                while not (found := await self.call("guest-exec-status", limit, pid=pid))["exited"]:
                    # The agent has no event for the end of a program.
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 1.0)
        except TimeoutError as error:
            raise AgentSilent(f"the program did not end within {limit:g} seconds", value=argv[0]) from error
        except (KeyError, TypeError) as error:
            raise AgentNonsense("the guest agent's answer cannot be read", value=argv[0]) from error
        try:
            code = int(found.get("exitcode", 128 + int(found.get("signal", 0))))
            out, err = (base64.b64decode(found.get(key, "")) for key in ("out-data", "err-data"))
        except (ValueError, TypeError, AttributeError, binascii.Error) as error:
            raise AgentNonsense("the guest agent's answer cannot be read", value=argv[0]) from error
        return GuestExec(code, out, err, bool(found.get("out-truncated") or found.get("err-truncated")))
