"""The guest agent (QEMU, docs/interop/qemu-ga-ref): JSON lines over its UNIX socket.

The guest is hostile: lines and time are bounded, garbage before the sync marker is skipped. Each
command has a connection of its own, so that a late answer to an abandoned one is never taken.
"""

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import json
import secrets
from pathlib import Path
from typing import Any

from holdfast.spec.errors import Failed, TimedOut
from holdfast.spec.vm_requests import ExecRequest, ExecResult

_MOST = 8 * 1024 * 1024
_MOST_OUTPUT = 1024 * 1024
_MOST_INTERFACES = 256
_FIRST_ATTEMPT = 0.25  # seconds; a guest that is starting answers nothing for a while
_LONGEST_ATTEMPT = 2.0


class AgentSilent(TimedOut):
    id = "guest-agent-silent"


class AgentRefused(Failed):
    id = "guest-agent-refused"


class AgentNonsense(Failed):
    id = "guest-agent-nonsense"


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

    async def ping(self, limit: float) -> None:
        """Return once the agent answers, for which it has `limit` seconds."""
        loop = asyncio.get_running_loop()
        deadline, attempt = loop.time() + limit, _FIRST_ATTEMPT
        while True:
            left = deadline - loop.time()
            try:
                await self.call("guest-ping", max(min(attempt, left), 0.01))
                return
            except (AgentSilent, AgentNonsense):
                if left <= attempt:
                    raise
                attempt = min(attempt * 2, _LONGEST_ATTEMPT)

    async def os_info(self, limit: float) -> dict[str, Any]:
        """`guest-get-osinfo`; whatever the guest says, as a dictionary."""
        return _dictionary(await self.call("guest-get-osinfo", limit))

    async def host_name(self, limit: float) -> str:
        return str(_dictionary(await self.call("guest-get-host-name", limit)).get("host-name", ""))[:253]

    async def addresses(self, limit: float) -> list[str]:
        """Addresses that others may reach the guest at, IPv4 first."""
        found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
        interfaces = await self.call("guest-network-get-interfaces", limit)
        for interface in interfaces[:_MOST_INTERFACES] if isinstance(interfaces, list) else ():
            for each in (_dictionary(interface).get("ip-addresses") or ())[:_MOST_INTERFACES]:
                with contextlib.suppress(ValueError):
                    found.add(ipaddress.ip_address(str(_dictionary(each).get("ip-address"))))
        useful = [each for each in found if not (each.is_loopback or each.is_link_local or each.is_multicast)]
        return [str(each) for each in sorted(useful, key=lambda each: (each.version, int(each)))]

    async def read_file(self, path: str, most: int, limit: float) -> bytes:
        """The first `most` bytes of a file in the guest."""
        handle = await self.call("guest-file-open", limit, path=path, mode="r")
        try:
            read = _dictionary(await self.call("guest-file-read", limit, handle=handle, count=most))
        finally:
            await self.call("guest-file-close", limit, handle=handle)
        try:
            return base64.b64decode(str(read.get("buf-b64", "")))[:most]
        except binascii.Error as error:
            raise AgentNonsense("the guest agent's answer cannot be read", value=path) from error

    async def shut_down(self, limit: float) -> None:
        """Ask for a power-off. The agent sends no answer to it."""
        try:
            async with asyncio.timeout(limit), self._one:
                await self._exchange("guest-shutdown", {"mode": "powerdown"}, answered=False)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise AgentSilent("the guest agent does not answer", value="guest-shutdown") from error

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Run a program in the guest and wait for it."""
        limit = request.timeout_seconds
        wanted: dict[str, Any] = {
            "path": request.argv[0],
            "arg": list(request.argv[1:]),
            "capture_output": True,
        }
        if request.stdin is not None:
            wanted["input_data"] = base64.b64encode(request.stdin.encode()).decode()
        try:
            async with asyncio.timeout(limit):
                pid = _dictionary(await self.call("guest-exec", limit, **wanted)).get("pid")
                found = await self._exited(pid, limit)
        except TimeoutError as error:
            raise AgentSilent(
                f"the program {request.argv[0][:60]!r} did not end within {limit:g} seconds",
                value=request.argv[0][:200],
                cure="Give it longer with --timeout. It goes on running in the guest.",
            ) from error
        return _result(found)

    async def _exited(self, pid: Any, limit: float) -> dict[str, Any]:
        pause = 0.02
        while True:
            found = _dictionary(await self.call("guest-exec-status", limit, pid=pid))
            if found.get("exited"):
                return found
            # The agent has no event for the end of a program.
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)


def _dictionary(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise AgentNonsense("the guest agent's answer cannot be read")
    return answer


def _result(found: dict[str, Any]) -> ExecResult:
    try:
        out, err = (base64.b64decode(str(found.get(key, ""))) for key in ("out-data", "err-data"))
        code, signal = found.get("exitcode"), found.get("signal")
        return ExecResult(
            exit_code=None if code is None else int(code),
            signal=None if signal is None else int(signal),
            stdout=out[:_MOST_OUTPUT].decode(errors="replace"),
            stderr=err[:_MOST_OUTPUT].decode(errors="replace"),
            truncated=bool(found.get("out-truncated") or found.get("err-truncated"))
            or max(len(out), len(err)) > _MOST_OUTPUT,
        )
    except (TypeError, ValueError) as error:
        raise AgentNonsense("the guest agent's answer cannot be read") from error
