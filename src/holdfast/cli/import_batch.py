"""Several imports side by side, each its own operation; Ctrl-C lets none of them go unnoticed.

waiting ──▶ under way (`at_once` threads) ──▶ ended        first Ctrl-C: waiting ones are dropped, those
                                                           under way are told to cancel, and waited for
                                                           second Ctrl-C: nobody waits for them any more
"""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from holdfast.cli.output import say
from holdfast.cli.waiting import LeftRunning, ended
from holdfast.spec.errors import Cancelled, HoldfastError

_LOOK = 0.1  # seconds until a Ctrl-C is seen to


class NotBegun(Cancelled):
    """An import that was waiting when Ctrl-C came."""

    id = "not-begun"


class Batch:
    """`connect` opens a client; each thread has its own."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, str, Callable[[Any], dict[str, Any]]]] = deque()
        self._under_way: dict[str, str] = {}
        self._results: dict[int, dict[str, Any]] = {}
        self._problem: BaseException | None = None
        self._working = 0
        self._over = threading.Event()
        self.interrupted = False

    def run(
        self, work: Sequence[tuple[str, Callable[[Any], dict[str, Any]]]], at_once: int
    ) -> list[dict[str, Any]]:
        """Begin each piece of work, a label and what begins its operation, and follow it to its end.

        What fails stops no other. Returns in their order `source` and either `operation` or `error`.

        Raises:
            LeftRunning: Ctrl-C came twice; the value is the operations that the daemon goes on with.
            NotBegun: it came twice, and nothing was under way.
        """
        self._waiting.extend((number, *each) for number, each in enumerate(work))
        self._working = at_once
        with _interrupts() as interrupts:
            # Daemon threads: after the second Ctrl-C the program ends although they wait.
            for _ in range(at_once):
                threading.Thread(target=self._worker, daemon=True).start()
            while not self._over.wait(_LOOK):
                if interrupts and not self.interrupted:
                    self._interrupt()
                elif len(interrupts) > 1:
                    raise self._left()
        if self._problem is not None:
            raise self._problem
        return [self._results[number] for number in range(len(work))]

    def follow(self, client: Any, wire: dict[str, Any], label: str) -> Any:
        """One operation to its good end; Ctrl-C finds it. Raises as `waiting.ended`."""
        with self._lock:
            self._under_way[wire["id"]] = label
            late = self.interrupted
        try:
            if late:  # it was begun while the others were cancelled
                client.cancel(wire["id"])
            return ended(client, wire, quiet=True)
        finally:
            with self._lock:
                self._under_way.pop(wire["id"], None)

    def _worker(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._waiting:
                        return
                    number, label, begin = self._waiting.popleft()
                result = self._whole(label, begin)
                with self._lock:
                    self._results[number] = result
        except BaseException as error:
            self._problem = error
        finally:
            with self._lock:
                self._working -= 1
                if not self._working:
                    self._over.set()

    def _whole(self, label: str, begin: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        try:
            with self._connect() as client:
                wire = begin(client)
                say(f"{label}: begun as {wire['subject']!r} (operation {wire['id']})")
                done: dict[str, Any] = self.follow(client, wire, label).model_dump(mode="json")
        except HoldfastError as error:
            say(f"{label}: {error.message}")
            return {"source": label, "error": error.as_dict()}
        say(f"{label}: {done['subject']!r} is there")
        return {"source": label, "operation": done}

    def _interrupt(self) -> None:
        with self._lock:
            self.interrupted = True
            under_way, dropped = dict(self._under_way), list(self._waiting)
            self._waiting.clear()
            for number, label, _ in dropped:
                self._results[number] = {"source": label, "error": _not_begun(label).as_dict()}
        say(
            f"Interrupted: {len(dropped)} are not begun; asking the daemon to cancel {len(under_way)}"
            " (Ctrl-C again: no longer wait for them)."
        )
        threading.Thread(target=self._cancel, args=(under_way,), daemon=True).start()

    def _cancel(self, under_way: dict[str, str]) -> None:
        try:
            with self._connect() as client:
                for operation, label in under_way.items():
                    say(f"{label}: cancelling operation {operation}")
                    client.cancel(operation)
        except HoldfastError as error:
            say(error.message)

    def _left(self) -> LeftRunning | NotBegun:
        with self._lock:
            under_way = dict(self._under_way)
        if not under_way:
            return NotBegun("nothing is under way, and nothing more is begun", cure="Import them again.")
        labels = ", ".join(sorted(under_way.values()))
        return LeftRunning(
            f"{len(under_way)} imports were told to cancel and are still being undone: {labels}",
            value=sorted(under_way),
            cure="See how far they are with `holdfast operation list`.",
        )


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Grows with each Ctrl-C, which raises nothing: an exception amidst threads' locks breaks these."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield came
        return
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def _not_begun(label: str) -> NotBegun:
    return NotBegun(f"{label}: Ctrl-C came before it was begun", value=label, cure="Import it again.")
