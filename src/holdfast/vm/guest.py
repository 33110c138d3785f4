"""What a guest says of itself through its agent: read when the agent appears, and when someone asks.

Nothing is polled while nothing changes: QEMU reports when the agent's port opens and closes. Only
addresses, which a guest gets some time after its agent starts, are asked for again, ever less
often, until there is one. Whatever a guest says is untrusted: bounded, shown, never acted on.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from holdfast.machine.running import RunningMachine
from holdfast.qmp.agent import AgentNonsense, AgentRefused, GuestAgent
from holdfast.qmp.agent_devices import online_cpus, online_memory
from holdfast.spec.errors import HoldfastError, Unsupported
from holdfast.spec.vm_requests import ExecRequest, ExecResult
from holdfast.spec.vm_view import GuestView
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

Seen = Callable[[GuestView, tuple[str, ...]], Awaitable[None]]

_PORT = "org.qemu.guest_agent.0"
_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_TPM_VERSION = "/sys/class/tpm/tpm0/tpm_version_major"
_FIRST_ANSWER = 120.0  # seconds; under emulation the port opens long before the agent answers
_ADDRESS_WAITS = (0.5, 1, 1, 2, 2, 4, 8, 15, 30, 60, 120)  # seconds between two looks for an address
_FRESH = 10.0  # seconds for which addresses are not asked for again
_SHORT = 10.0  # seconds for one small question
_MEETING = 5.0  # seconds that a program waits to be run until the agent has answered
_GLANCE = 1.0  # seconds for which somebody who only looks is kept waiting by a silent agent
_IDENTIFIER = re.compile(r"[^\x20-\x7e]")


class AgentNotThere(Unsupported):
    id = "guest-agent-not-there"


class GuestWatch:
    """Owner of the connection to one VM's agent while its machine runs."""

    def __init__(
        self, rooms: Rooms, machine: RunningMachine, record: Callable[[], VmRecord], seen: Seen
    ) -> None:
        self._rooms = rooms
        self._agent = GuestAgent(machine.agent_path)
        self._record = record
        self._seen = seen
        self._view = GuestView(agent="waiting")
        self._addresses: tuple[str, ...] = ()
        self.restarts = 0
        """Of the guest, since this daemon knows the machine."""
        self._met = asyncio.Event()
        self._looked_at = 0.0
        self._read_once = False
        self._task: asyncio.Task[None] | None = None
        """Meets the agent."""
        self._telling: set[asyncio.Future[None]] = set()
        self._probe: asyncio.Task[None] = asyncio.create_task(self._look_at_port(machine))

    @property
    def connected(self) -> bool:
        return self._view.agent == "connected"

    async def _look_at_port(self, machine: RunningMachine) -> None:
        """The port may be open already, when a daemon comes back to a running guest."""
        with contextlib.suppress(HoldfastError):
            if await machine.agent_port_open():
                self.port_changed({"id": _PORT, "open": True})

    def port_changed(self, data: dict[str, Any]) -> None:
        """QEMU's VSERPORT_CHANGE: the guest's agent opened or closed its port."""
        if data.get("open") and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._meet())
        elif not data.get("open"):
            self._lost("waiting")

    def forget(self) -> None:
        """The guest restarts: what it said no longer holds."""
        self.restarts += 1
        self._lost("waiting")

    def _lost(self, agent: str) -> None:
        self._met.clear()
        if self._task:
            self._task.cancel()
            self._task = None
        self._view, self._addresses = GuestView(agent=agent), ()
        self._read_once = False
        telling = asyncio.ensure_future(self._seen(self._view, ()))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        for task in (self._probe, self._task, *self._telling):
            if task and task is not asyncio.current_task():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, HoldfastError):
                    await task
        await self._agent.close()

    async def _meet(self) -> None:
        """Wait for the first answer, read everything once, then wait for an address."""
        try:
            await self._agent.ping(_FIRST_ANSWER)
            # Said at once: the first answer is what the boot time counts to.
            self._view = GuestView(agent="connected")
            self._met.set()
            await self._seen(self._view, self._addresses)
            self._view = await self._read()
            self._read_once = True
            await self._seen(self._view, self._addresses)
            for wait in _ADDRESS_WAITS:
                await self._find_place()
                if self._addresses:
                    return
                await asyncio.sleep(wait)
        except HoldfastError as error:
            log.info("guest agent", vm=self._record().name, error=error.message)

    async def _read(self) -> GuestView:
        os_info = await self._ask(self._agent.os_info(_SHORT)) or {}
        secure_boot = await self._ask(self._agent.read_file(_SECURE_BOOT, 16, _SHORT))
        tpm = await self._ask(self._agent.read_file(_TPM_VERSION, 16, _SHORT))
        name = await self._ask(self._agent.host_name(_SHORT))
        return GuestView(
            agent="connected",
            # Four bytes of attributes, then the value (Linux Documentation/filesystems/efivarfs.rst).
            secure_boot=secure_boot[4:5] == b"\x01" if secure_boot is not None else None,
            tpm_version=_tpm_version(tpm),
            os_name=_text(os_info.get("pretty-name")),
            kernel=_text(os_info.get("kernel-release")),
            host_name=_text(name),
            **await self._size(),
        )

    async def measure(self) -> None:
        """Read again how much the guest uses. Raises AgentNotThere."""
        await self.agent()
        self._view = self._view.model_copy(update=await self._size())
        await self._seen(self._view, self._addresses)

    async def _size(self) -> dict[str, int | None]:
        return {
            "cpus": await self._ask(online_cpus(self._agent, _SHORT)),
            "memory": await self._ask(online_memory(self._agent, _SHORT)),
        }

    @staticmethod
    async def _ask(question: Awaitable[Any]) -> Any:
        """None where the guest cannot say (no such file, command disabled)."""
        try:
            return await question
        except (AgentRefused, AgentNonsense):
            return None

    async def _find_place(self, limit: float = _SHORT) -> None:
        """Where the guest is: addresses and host name."""
        self._looked_at = time.monotonic()
        found = await self._ask(self._agent.addresses(limit)) or ()
        self._addresses = tuple(found) or await self._leased()
        # Its name may be given to it late too: cloud-init runs beside the agent.
        name = _text(await self._ask(self._agent.host_name(limit)))
        self._view = self._view.model_copy(update={"host_name": name or self._view.host_name})
        await self._seen(self._view, self._addresses)

    async def _leased(self) -> tuple[str, ...]:
        found: list[str] = []
        for nic in self._record().spec.nics:
            found += await self._rooms.ports.addresses(nic)
        return tuple(found)

    async def refresh(self) -> None:
        """Ask again for the addresses, where what is known is old.

        Never before all else was read: whoever waits for an address finds the whole view with it.
        """
        if self.connected and self._read_once and time.monotonic() - self._looked_at > _FRESH:
            with contextlib.suppress(HoldfastError):
                await self._find_place(_GLANCE)

    async def shut_down(self, limit: float) -> bool:
        """Ask the guest's agent to power off. False where it does not take it up in `limit` seconds."""
        if not self.connected:
            return False
        try:
            await self._agent.shut_down(min(limit, _SHORT))
        except HoldfastError:
            return False
        return True

    async def agent(self) -> GuestAgent:
        """The agent, once it has answered. Raises AgentNotThere."""
        # A daemon that has just come back, or a guest just restored, answers in a moment.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._met.wait(), _MEETING)
        if not self.connected:
            raise AgentNotThere(
                f"the guest agent of VM {self._record().name!r} has not answered",
                value=self._record().name,
                cure="Wait with `holdfast vm wait NAME --agent`; see that qemu-guest-agent runs inside.",
            )
        return self._agent

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Run a program in the guest. Raises AgentNotThere, AgentRefused, and time-outs."""
        return await (await self.agent()).execute(request)


def _tpm_version(content: bytes | None) -> str | None:
    if content is None:
        return None
    major = content.decode(errors="replace").strip()
    return {"2": "2.0", "1": "1.2"}.get(major)


def _text(value: Any) -> str | None:
    return _IDENTIFIER.sub("?", value)[:200] if isinstance(value, str) else None
