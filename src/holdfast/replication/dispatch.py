"""The daemon's side of the process that ships: begun when it is needed, asked, begun again where it ended.

Owner of the worker process: this module. Links are numbered here, and each does one thing at a time.
"""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Mapping

import structlog

from holdfast.host.processes import Processes
from holdfast.replication.capture import Captured
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address, LinkLost
from holdfast.replication.moving import Told
from holdfast.replication.shipping import Shipped
from holdfast.replication.wire import Open, Standing
from holdfast.replication.worker import Answer, Close, Connect, Limits, Ship, Tune
from holdfast.spec.errors import RemoteError
from holdfast.spec.replica import Priority

log = structlog.get_logger(__name__)

_LONGEST_LINE = 1024 * 1024


class Dispatch:
    """All links of this host's sources."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.numbers = itertools.count(1)
        """Of links and of tasks."""
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._told: dict[int, Told] = {}
        self.limits = Limits()
        """Of all links together."""
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()

    def link(self) -> "DispatchedLink":
        """A link that is not connected yet."""
        return DispatchedLink(self, next(self.numbers))

    async def ask(self, task: Connect | Ship, told: Told | None = None) -> Answer:
        """Have a task done. Cancelled, its link is closed.

        `told`: how far it is, now and then.

        Raises:
            LinkLost: the worker ended.
            RemoteError: what it failed by.
        """
        writer = await self._started()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[task.task] = answer
        if told is not None:
            self._told[task.task] = told
        try:
            writer.write(task.model_dump_json().encode() + b"\n")
            with contextlib.suppress(OSError):  # its end is noticed where it is read
                await writer.drain()
            found = await answer
        except asyncio.CancelledError:
            self.close_link(task.link)
            raise
        finally:
            self._waiting.pop(task.task, None)
            self._told.pop(task.task, None)
        if found.error is not None:
            raise RemoteError(found.error)
        return found

    def limit(self, limits: Limits) -> None:
        """What all links may send together, from now on; a worker that begins anew is told as well."""
        self.limits = limits
        self.tell(limits)

    def tell(self, task: Close | Limits | Tune) -> None:
        """What is not answered; of no use where the worker has ended."""
        if self._writer is not None:
            self._writer.write(task.model_dump_json().encode() + b"\n")

    def close_link(self, number: int) -> None:
        self.tell(Close(link=number))

    async def close(self) -> None:
        """End the worker and with it all links."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _started(self) -> asyncio.StreamWriter:
        async with self._one:
            if self._writer is None:
                ours, its = socket.socketpair()
                reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST_LINE)
                self.tell(self.limits)
                for work in (self._run(its), self._read(reader, self._writer)):
                    task = asyncio.create_task(work)
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            return self._writer

    async def _run(self, its: socket.socket) -> None:
        fd = its.fileno()
        argv = [sys.executable, "-m", "holdfast.replication.worker", str(fd)]
        try:
            done = await self._processes.run(argv, owner="host", role="replica-worker", pass_fds=(fd,))
            log.warning("replica-worker-ended", code=done.returncode, stderr=done.stderr[-2000:].decode())
        finally:
            its.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = Answer.model_validate_json(line)
                if answer.moving is not None:
                    if told := self._told.get(answer.task):
                        told(answer.moving)
                    continue
                waiting = self._waiting.get(answer.task)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        finally:
            self._writer = None
            writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_ended())


class DispatchedLink:
    """One link. `connect` may be called again after a failure."""

    def __init__(self, dispatch: Dispatch, number: int) -> None:
        self._dispatch = dispatch
        self._number = number

    async def connect(
        self,
        address: Address,
        identity: Identity,
        peer: str,
        host: str,
        opened: Open,
        *,
        priority: Priority = Priority.NORMAL,
        limit: str = "none",
    ) -> Standing:
        """Connect to a peer about one VM, and learn what it holds of it. Raises as `Dispatch.ask`.

        `priority`, `limit`: of what is sent over this link; see `pace`.
        """
        task = Connect(
            task=next(self._dispatch.numbers),
            link=self._number,
            address=address,
            identity=identity,
            peer=peer,
            host=host,
            opened=opened,
            priority=priority,
            limit=limit,
        )
        answer = await self._dispatch.ask(task)
        if answer.standing is None:
            raise _ended()
        return answer.standing

    async def ship(
        self,
        captured: Captured,
        base: int,
        attachments: Mapping[str, bytes],
        *,
        compared: bool = False,
        told: Told | None = None,
    ) -> Shipped:
        """Ship a cycle, and return once the peer holds it whole; see `Shipper.ship`.

        `told`: how far it is, now and then.

        Raises as `Dispatch.ask`.
        """
        # Base64Bytes takes what is encoded.
        task = Ship.model_construct(
            task=next(self._dispatch.numbers),
            link=self._number,
            captured=captured,
            base=base,
            compared=compared,
            attachments=dict(attachments),
        )
        answer = await self._dispatch.ask(task, told)
        if answer.shipped is None:
            raise _ended()
        return answer.shipped

    def tune(self, priority: Priority, limit: str) -> None:
        """Change what `connect` was told; also of a cycle under way. `limit` was parsed before."""
        self._dispatch.tell(Tune(link=self._number, priority=priority, limit=limit))

    def close(self) -> None:
        self._dispatch.close_link(self._number)


def _ended() -> LinkLost:
    return LinkLost(
        "the process that ships replicas ended",
        cure="It is started again with the next cycle; the daemon's log says why it ended.",
    )
