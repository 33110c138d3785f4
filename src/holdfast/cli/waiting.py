"""Waiting for an Operation: progress on stderr, Ctrl-C asks the daemon to cancel it."""

import sys
from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, escape, print_json, say
from holdfast.spec.errors import Cancelled, RemoteError

StopTimeout = Annotated[float, typer.Option("--timeout", help="Seconds the guest gets to shut down.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once; see `holdfast operation show`.")]
_WIDTH = 24


class OperationCancelled(Cancelled):
    id = "operation-cancelled"


class LeftRunning(Cancelled):
    """The second Ctrl-C: nobody waits for the operation any more."""

    id = "left-running"


class _Bar:
    """One line that is written over on a terminal; a line for each new phase elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._phase = ""

    def draw(self, operation: Any) -> None:
        if self._live:
            full = round(operation.progress * _WIDTH)
            bar = "#" * full + "-" * (_WIDTH - full)
            text = escape(f"{operation.phase} {operation.text}")[:70]
            sys.stderr.write(f"\r\x1b[K[{bar}] {operation.progress:4.0%} {text}")
            sys.stderr.flush()
        elif operation.phase and operation.phase != self._phase:
            say(f"{operation.progress:4.0%} {operation.phase}")
        self._phase = operation.phase

    def close(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def finish(client: Any, wire: dict[str, Any], format_: Format, no_wait: bool = False) -> dict[str, Any]:
    """Follow the operation to its end and print it (as JSON) or one line (for people).

    Raises:
        RemoteError: it failed, in the daemon's words.
        OperationCancelled: somebody cancelled it.
        LeftRunning: Ctrl-C came twice; the daemon goes on with it, or with undoing it.
    """
    from holdfast.spec.operation import Operation

    operation = Operation.model_validate(wire) if no_wait else ended(client, wire)
    result = operation.model_dump(mode="json")
    if format_ is Format.JSON:
        print_json(result)
    elif no_wait:
        say(f"{operation.kind} of {operation.subject!r} is under way: operation {operation.id}")
    else:
        say(f"{operation.kind} of {operation.subject!r} done")
    return result


def ended(client: Any, wire: dict[str, Any], quiet: bool = False) -> Any:
    """Follow the operation to its good end, and return it; `quiet` draws no bar. Raises as `finish` does."""
    from holdfast.spec.operation import Operation, OperationState

    operation = Operation.model_validate(wire)
    if quiet:
        for operation in client.follow(operation):  # noqa: B007, B020
            pass
    else:
        operation = _follow(client, operation)
    if operation.state is OperationState.CANCELLED:
        raise OperationCancelled(f"{operation.kind} of {operation.subject!r} was cancelled and undone")
    if operation.state is OperationState.FAILED:
        raise RemoteError(operation.error or {})
    return operation


def _follow(client: Any, operation: Any) -> Any:
    bar = _Bar()
    asked = False
    while True:
        try:
            if asked:
                say("Interrupted: asking the daemon to cancel (Ctrl-C again: no longer wait for it).")
                client.cancel(operation.id)
            for seen in client.follow(operation):
                operation = seen
                bar.draw(operation)
            return operation
        except KeyboardInterrupt:
            bar.close()
            if asked:
                raise _left(operation) from None
            asked = True
        finally:
            bar.close()


def _left(operation: Any) -> LeftRunning:
    return LeftRunning(
        f"{operation.kind} of {operation.subject!r} was told to cancel and is still being undone",
        value=operation.id,
        cure=f"See how far it is with `holdfast operation show {operation.id}`.",
    )
