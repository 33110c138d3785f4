"""The process that ships: all of a host's links, so that TLS and compression leave the daemon's core alone.

    daemon ── tasks, one JSON object a line, over a socket ──▶ worker ── a thread a link ──▶ QEMU, other hosts
           ◀─ an answer to each ─────────────────────────────

It holds nothing that matters: where it or the daemon ends, the receivers drop what was under way. It ends
when the socket closes. Run as `python -m holdfast.replication.worker FD`.
"""

import contextlib
import queue
import socket
import sys
import threading
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, TypeAdapter

from holdfast.replication.capture import Captured
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address, LinkLost, TlsLink, connect, greet
from holdfast.replication.moving import Moving
from holdfast.replication.pace import Flow
from holdfast.replication.pacing import Pacer
from holdfast.replication.shipping import Shipped, Shipper, open_vm
from holdfast.replication.wire import Open, Standing
from holdfast.spec.errors import HoldfastError
from holdfast.spec.model import Frozen
from holdfast.spec.replica import Priority

_SWITCH_SECONDS = 0.0005
"""How long a thread keeps Python's lock: reader and sender of a link hand over 1 MiB every millisecond."""


class Connect(Frozen):
    """Begin a link about one VM; answered by what the receiver holds of it."""

    do: Literal["connect"] = "connect"
    task: int
    """Number of this task, which its answer has."""
    link: int
    """Number that the daemon gave the link."""
    address: Address
    identity: Identity
    peer: str
    """Fingerprint of the receiver's certificate."""
    host: str
    """What this host calls itself."""
    opened: Open
    priority: Priority = Priority.NORMAL
    limit: str = "none"
    """Of this link; see `pace.parse_limit`."""


class Ship(Frozen):
    """Ship a cycle; answered once the receiver holds it whole."""

    do: Literal["ship"] = "ship"
    task: int
    link: int
    captured: Captured
    base: int
    compared: bool = False
    attachments: dict[str, Base64Bytes] = {}


class Close(Frozen):
    """End a link, whatever it is doing. Not answered, but what it was doing fails."""

    do: Literal["close"] = "close"
    link: int


class Limits(Frozen):
    """What all links may send together. Not answered; holds from now on, also for what is under way."""

    do: Literal["limits"] = "limits"
    host: str = "none"
    peers: dict[str, str] = {}
    """By fingerprint; others have none."""


class Tune(Frozen):
    """Change a link that is connected. Not answered; holds from now on, also for what is under way."""

    do: Literal["tune"] = "tune"
    link: int
    priority: Priority
    limit: str


Task = Annotated[Connect | Ship | Close | Limits | Tune, Field(discriminator="do")]
TASK: TypeAdapter[Task] = TypeAdapter(Task)


class Answer(Frozen):
    """To one task: one of the first three, and before that any number of the last."""

    task: int
    standing: Standing | None = None
    shipped: Shipped | None = None
    error: dict[str, object] | None = None
    """As `HoldfastError.as_dict`."""
    moving: Moving | None = None


class _Line:
    """One link and the thread that it belongs to."""

    def __init__(self, number: int, answers: "_Answers", pacer: Pacer) -> None:
        self._answers = answers
        self._pacer = pacer
        self._tasks: queue.SimpleQueue[Connect | Ship | None] = queue.SimpleQueue()
        self._link: TlsLink | None = None
        self._shipper: Shipper | None = None
        self._flow: Flow | None = None
        self._task = 0
        """The cycle under way."""
        threading.Thread(target=self._run, name=f"link-{number}", daemon=True).start()

    def put(self, task: Connect | Ship) -> None:
        self._tasks.put(task)

    def tune(self, tune: Tune) -> None:
        if (flow := self._flow) is not None:
            self._pacer.tune(flow, tune.priority, tune.limit)

    def close(self) -> None:
        self._tasks.put(None)
        if (link := self._link) is not None:
            link.abort()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self._answers.put(self._done(task))
            except HoldfastError as error:
                self._answers.put(Answer(task=task.task, error=error.as_dict()))
            except Exception as error:  # told, so that nobody waits for ever
                failed = HoldfastError(f"a link's thread failed: {error!r}")
                self._answers.put(Answer(task=task.task, error=failed.as_dict()))
        self._drop()

    def _done(self, task: Connect | Ship) -> Answer:
        if isinstance(task, Connect):
            self._drop()
            link = self._link = connect(task.address, task.identity, task.peer)
            greet(link, task.host)
            standing = open_vm(link, task.opened)
            flow = self._pacer.flow(task.peer, task.priority, task.limit)
            self._flow = flow
            self._shipper = Shipper(link, lambda size: self._pacer.wait(flow, size), self._told)
            return Answer(task=task.task, standing=standing)
        if self._shipper is None:
            raise LinkLost("the link is not connected", cure="It is connected again with the next cycle.")
        self._task = task.task
        try:
            attachments = dict(task.attachments)
            shipped = self._shipper.ship(task.captured, task.base, attachments, compared=task.compared)
        except BaseException:
            self._drop()  # in the midst of a cycle nothing else can follow
            raise
        return Answer(task=task.task, shipped=shipped)

    def _told(self, moving: Moving) -> None:
        self._answers.put(Answer(task=self._task, moving=moving))

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = self._shipper = None


class _Answers:
    """Where all threads answer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._one = threading.Lock()

    def put(self, answer: Answer) -> None:
        line = answer.model_dump_json(exclude_none=True).encode() + b"\n"
        with self._one, contextlib.suppress(OSError):  # the daemon is gone, and so are we soon
            self._channel.sendall(line)


def main(fd: int) -> None:
    """Serve until the other end of the socket closes."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    channel = socket.socket(fileno=fd)
    answers, pacer = _Answers(channel), Pacer()
    lines: dict[int, _Line] = {}
    with channel.makefile("rb") as tasks:
        for said in tasks:
            task = TASK.validate_json(said)
            if isinstance(task, Close):
                if line := lines.pop(task.link, None):
                    line.close()
                continue
            if isinstance(task, Limits):
                pacer.limit(task.host, task.peers)
                continue
            if isinstance(task, Tune):
                if line := lines.get(task.link):
                    line.tune(task)
                continue
            if task.link not in lines:
                lines[task.link] = _Line(task.link, answers, pacer)
            lines[task.link].put(task)


if __name__ == "__main__":
    main(int(sys.argv[1]))
