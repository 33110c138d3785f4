"""The guest agent's commands (QEMU, qga/qapi-schema.json), asked over the socket of its channel.

Every command begins with a synchronization, so that a late answer to an abandoned one is never
taken for its own, and so that an agent which was restarted inside is found again. The guest is
hostile: every call ends at its limit, every answer is bounded and checked, none is acted on.
"""

import asyncio
import base64
import contextlib
import ipaddress
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from holdfast.qmp.agent_channel import AgentChannel
from holdfast.qmp.errors import AgentFailed, AgentLost, AgentNonsense, AgentRefused, AgentTimedOut
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm_requests import ExecRequest, ExecResult

__all__ = ["AgentFailed", "AgentLost", "AgentNonsense", "AgentRefused", "AgentTimedOut", "GuestAgent"]

_MOST_OUTPUT = 1024 * 1024  # bytes of each of a program's two outputs
_MOST_INTERFACES = 256
_MOST_FILE_SYSTEMS = 1 << 20
_CHUNK = 256 * 1024  # bytes of a file in one command
_FIRST_ATTEMPT = 0.25  # seconds; a guest that is starting answers nothing for a while
_LONGEST_ATTEMPT = 2.0
_FIRST_LOOK = 0.02  # seconds until a program is first looked after
_LONGEST_LOOK = 0.5
_SHUTDOWN_REFUSAL = 1.0  # seconds in which an agent that cannot shut down says so
_CLOSING = 2.0  # seconds to close a file after a failure
_FORGOTTEN = 16
_LARGE = 64 * 1024  # bytes from which an answer is parsed off the loop


class GuestAgent:
    """One guest's agent; connects when it is first asked. One command is under way at a time.

    Args:
        path: the UNIX socket on which QEMU serves the agent's channel. It serves one client.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one = asyncio.Lock()
        self._channel: AgentChannel | None = None

    async def call(self, command: str, limit: float = 10.0, **arguments: Any) -> Any:
        """One command within `limit` seconds; `_` in an argument's name stands for `-`.

        Raises:
            AgentTimedOut: no answer in time; the guest may still carry it out.
            AgentRefused: the agent answered with an error.
            AgentNonsense: it answered with something else.
            AgentLost: its channel is not there, or closed.
        """
        async with self._turn(command, limit) as channel:
            channel.send(_wire(command, arguments))
            return await _answer(channel, command)

    @contextlib.asynccontextmanager
    async def _turn(self, command: str, limit: float) -> AsyncIterator[AgentChannel]:
        """The channel for one command, the agent being ready for it."""
        try:
            async with asyncio.timeout(limit), self._one:
                channel = await self._ready()
                try:
                    yield channel
                except AgentRefused:
                    channel.end()
                    raise
                except BaseException:
                    channel.close()
                    raise
                channel.end()
        except TimeoutError as error:
            raise AgentTimedOut(
                f"the guest agent did not answer {command} within {limit:g} seconds",
                value=command,
                cure="See that qemu-guest-agent runs in the guest.",
            ) from error

    async def _ready(self) -> AgentChannel:
        """A channel whose agent has just answered."""
        if self._channel is not None and not self._channel.lost:
            with contextlib.suppress(AgentLost):  # it was left open, and may have ended meanwhile
                await self._synchronize(self._channel)
                return self._channel
        self._channel = await AgentChannel.open(self._path)
        await self._synchronize(self._channel)
        return self._channel

    async def _synchronize(self, channel: AgentChannel) -> None:
        """Send a number until the agent says it; waits without end."""
        token = secrets.randbelow(1 << 53)
        question = _wire("guest-sync-delimited", {"id": token})
        attempt = _FIRST_ATTEMPT
        channel.begin()
        try:
            # 0xFF resets the parser of an agent that is left with half a command. It is answered with
            # an error, so it is not sent again: that error could come after the answer waited for.
            channel.send(b"\xff")
            while True:
                channel.send(question)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(attempt):
                        await _delimited(channel, token)
                        return
                attempt = min(attempt * 2, _LONGEST_ATTEMPT)
        except BaseException:
            channel.close()
            raise

    async def ping(self, limit: float) -> None:
        """Return once the agent answers, for which it has `limit` seconds. Raises AgentTimedOut.

        The channel need not be there yet.
        """
        deadline = _now() + limit
        attempt = _FIRST_ATTEMPT
        while True:
            try:
                async with self._turn("ping", max(0.0, deadline - _now())):
                    return
            except AgentFailed as error:
                pause = min(attempt, deadline - _now())
                if pause <= 0:
                    raise AgentTimedOut(f"the guest agent did not answer within {limit:g} seconds") from error
                await asyncio.sleep(pause)
                attempt = min(attempt * 2, _LONGEST_ATTEMPT)

    async def os_info(self, limit: float) -> dict[str, Any]:
        """`guest-get-osinfo`; whatever the guest says, as a dictionary."""
        return _dictionary(await self.call("guest-get-osinfo", limit))

    async def host_name(self, limit: float) -> str:
        return str(_dictionary(await self.call("guest-get-host-name", limit)).get("host-name", ""))[:253]

    async def addresses(self, limit: float) -> list[str]:
        """Addresses that others may reach the guest at: IPv4 first, else in the guest's order."""
        found: dict[ipaddress.IPv4Address | ipaddress.IPv6Address, None] = {}
        for interface in _listed(await self.call("guest-network-get-interfaces", limit)):
            for entry in _listed(_dictionary(interface).get("ip-addresses")):
                with contextlib.suppress(ValueError):
                    found[ipaddress.ip_address(str(_dictionary(entry).get("ip-address"))[:64])] = None
        return [str(each) for each in sorted(filter(_reachable, found), key=lambda each: each.version)]

    async def read_file(self, path: str, most: int, limit: float) -> bytes:
        """The first `most` bytes of a file in the guest."""
        deadline = _now() + limit
        content = bytearray()
        async with self._file(path, "r", deadline) as handle:
            while len(content) < most:
                wanted = min(_CHUNK, most - len(content))
                answer = await self.call("guest-file-read", deadline - _now(), handle=handle, count=wanted)
                chunk = _decoded(_dictionary(answer).get("buf-b64", ""))[:wanted]
                content += chunk
                if not chunk or answer.get("eof"):
                    break
        return bytes(content)

    async def exchange(self, path: str, question: bytes, most: int, limit: float) -> bytes:
        """Write a question to a character device in the guest, and read its answer of up to `most` bytes.

        The device is opened for it and closed after it: the agent cannot write again where it has read.

        Raises:
            AgentTimedOut: no answer came in `limit` seconds.
        """
        deadline = _now() + limit
        async with self._file(path, "r+", deadline) as handle:
            await self._write(handle, question, deadline)
            await self.call("guest-file-flush", deadline - _now(), handle=handle)
            for pause in _looks():
                # The agent opens without blocking: it reads nothing while the device still works.
                answer = await self.call("guest-file-read", deadline - _now(), handle=handle, count=most)
                content = _decoded(_dictionary(answer).get("buf-b64", ""))[:most]
                if content:
                    return content
                await asyncio.sleep(pause)
        raise AssertionError

    async def write_file(self, path: str, content: bytes, limit: float) -> None:
        """Make or replace a file in the guest; it is not replaced at once, but written in place."""
        deadline = _now() + limit
        async with self._file(path, "w", deadline) as handle:
            await self._write(handle, content, deadline)

    async def _write(self, handle: Any, content: bytes, deadline: float) -> None:
        left = memoryview(content)
        while left:
            encoded = base64.b64encode(left[:_CHUNK]).decode()
            answer = await self.call("guest-file-write", deadline - _now(), handle=handle, buf_b64=encoded)
            written = _dictionary(answer).get("count")
            if not isinstance(written, int) or not 0 < written <= min(_CHUNK, len(left)):
                raise AgentNonsense("the guest agent's answer cannot be read", value="guest-file-write")
            left = left[written:]

    @contextlib.asynccontextmanager
    async def _file(self, path: str, mode: str, deadline: float) -> AsyncIterator[Any]:
        handle = await self.call("guest-file-open", deadline - _now(), path=path, mode=mode)
        try:
            yield handle
        except BaseException:
            # What the agent holds open it keeps for ever; a silent one gets a moment of its own.
            with contextlib.suppress(HoldfastError):
                await asyncio.shield(self.call("guest-file-close", _CLOSING, handle=handle))
            raise
        await self.call("guest-file-close", max(_CLOSING, deadline - _now()), handle=handle)

    async def close_forgotten(self, limit: float) -> None:
        """Close files that an earlier daemon, ended in the middle, left open in the agent.

        Handles count up by one (QEMU, qga/commands-posix.c), so the ones before the newest are tried.
        """
        deadline = _now() + limit
        async with self._file("/dev/null", "r", deadline) as newest:
            if type(newest) is not int:
                raise AgentNonsense("the guest agent's answer cannot be read", value="guest-file-open")
            for handle in range(newest - 1, max(0, newest - _FORGOTTEN) - 1, -1):
                with contextlib.suppress(AgentRefused):
                    await self.call("guest-file-close", deadline - _now(), handle=handle)

    async def freeze(self, limit: float) -> int:
        """Write everything out and let nothing be written until `thaw`; returns how many file systems.

        Meanwhile the agent takes few other commands. Raises as `call` does; who gives up must `thaw` too.
        """
        return _count(await self.call("guest-fsfreeze-freeze", limit))

    async def thaw(self, limit: float) -> int:
        """End a `freeze`; returns how many file systems it ended on. Raises as `call` does."""
        return _count(await self.call("guest-fsfreeze-thaw", limit))

    async def shut_down(self, limit: float) -> None:
        """Ask for a power-off; returns when the agent has taken it up. Raises as `call` does."""
        async with self._turn("guest-shutdown", limit) as channel:
            token = secrets.randbelow(1 << 53)
            channel.send(_wire("guest-shutdown", {"mode": "powerdown"}))
            # Success has no answer of its own: the next command's answer says that none is to come.
            channel.send(_wire("guest-sync-delimited", {"id": token}))
            # Silence, or the end of the channel, is what a guest that goes down looks like.
            with contextlib.suppress(TimeoutError, AgentLost):
                async with asyncio.timeout(_SHUTDOWN_REFUSAL):
                    await _delimited(channel, token, "guest-shutdown")

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Run a program in the guest and wait for it.

        Raises:
            AgentTimedOut: it did not end within the request's limit; it goes on in the guest.
            AgentRefused, AgentNonsense, AgentLost: as `call` does.
        """
        limit, program = request.timeout_seconds, request.argv[0]
        deadline = _now() + limit
        wanted: dict[str, Any] = {"path": program, "arg": list(request.argv[1:]), "capture_output": True}
        if request.stdin is not None:
            wanted["input_data"] = base64.b64encode(request.stdin.encode()).decode()
        begun = _dictionary(await self.call("guest-exec", limit, **wanted))
        for pause in _looks():
            left = deadline - _now()
            if left <= 0:
                raise AgentTimedOut(
                    f"the program {program[:60]!r} did not end within {limit:g} seconds",
                    value=program[:200],
                    cure="Give it longer with --timeout. It goes on running in the guest.",
                )
            # The agent has no event for the end of a program.
            await asyncio.sleep(min(pause, left))
            # The agent tells the outputs once and forgets them: the last question has a second of its own.
            left = max(1.0, deadline - _now())
            answer = await self.call("guest-exec-status", left, pid=begun.get("pid"))
            if _dictionary(answer).get("exited"):
                return _result(answer)
        raise AssertionError

    async def close(self) -> None:
        """Let go of the channel; the next command opens it again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _looks() -> Iterator[float]:
    pause = _FIRST_LOOK
    while True:
        yield pause
        pause = min(pause * 1.5, _LONGEST_LOOK)


def _wire(command: str, arguments: dict[str, Any]) -> bytes:
    told: dict[str, Any] = {"execute": command}
    if arguments:
        told["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps(told).encode() + b"\n"


async def _delimited(channel: AgentChannel, token: int, command: str = "") -> None:
    """Wait for the answer to a synchronization.

    An answer without a delimiter is an older command's, or that of `command`, whose error is raised.
    """
    while True:
        line = await channel.line()
        if line.delimited:
            with contextlib.suppress(ValueError, RecursionError):
                if json.loads(line.text) == {"return": token}:
                    return
        elif command:
            _returned(await _parsed(line.text, command), command)


async def _answer(channel: AgentChannel, command: str) -> Any:
    while True:
        line = await channel.line()
        if not line.delimited:  # else it is the answer to a synchronization that was sent again
            return _returned(await _parsed(line.text, command), command)


async def _parsed(text: bytes, command: str) -> Any:
    try:
        return await asyncio.to_thread(json.loads, text) if len(text) > _LARGE else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AgentNonsense("the guest agent's answer cannot be read", value=command) from error


def _returned(answer: Any, command: str) -> Any:
    if not isinstance(answer, dict) or not {"return", "error"} & answer.keys():
        raise AgentNonsense("the guest agent's answer cannot be read", value=command)
    if "error" not in answer:
        return answer["return"]
    error = answer["error"] if isinstance(answer["error"], dict) else {}
    said, kind = (str(error.get(key, ""))[:500] for key in ("desc", "class"))
    raise AgentRefused(
        f"the guest agent refused {command}: {said}", value=command, detail={"class": kind, "desc": said}
    )


def _dictionary(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise AgentNonsense("the guest agent's answer cannot be read")
    return answer


def _count(answer: Any) -> int:
    if type(answer) is not int or not 0 <= answer <= _MOST_FILE_SYSTEMS:
        raise AgentNonsense("the guest agent's answer cannot be read")
    return answer


def _listed(answer: Any) -> list[Any]:
    return answer[:_MOST_INTERFACES] if isinstance(answer, list) else []


def _reachable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or (address.version == 6 and address.is_site_local)  # deprecated by RFC 3879; QEMU's own network
    )


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(str(text))
    except ValueError as error:
        raise AgentNonsense("the guest agent's answer cannot be read") from error


def _result(answer: dict[str, Any]) -> ExecResult:
    out, err = (_decoded(answer.get(key, "")) for key in ("out-data", "err-data"))
    cut = max(len(out), len(err)) > _MOST_OUTPUT
    return ExecResult(
        exit_code=_number(answer.get("exitcode")),
        signal=_number(answer.get("signal")),
        stdout=out[:_MOST_OUTPUT].decode(errors="replace"),
        stderr=err[:_MOST_OUTPUT].decode(errors="replace"),
        truncated=cut or bool(answer.get("out-truncated") or answer.get("err-truncated")),
    )


def _number(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or not -(1 << 31) <= value < 1 << 32:
        raise AgentNonsense("the guest agent's answer cannot be read", value="guest-exec-status")
    return value
