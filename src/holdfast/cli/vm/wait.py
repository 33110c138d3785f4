"""`holdfast vm wait`."""

import time
from typing import Annotated, Any

import typer

from holdfast.cli.names import VmArgument
from holdfast.spec.errors import Failed, InvalidInput, TimedOut

EXAMPLE = "holdfast vm wait web --agent --timeout 120"


class NothingToWaitFor(InvalidInput):
    id = "nothing-to-wait-for"


class WaitTimedOut(TimedOut):
    id = "wait-timed-out"


class VmFailedMeanwhile(Failed):
    id = "vm-failed"


def _reached(vm: Any, agent: bool, state: str | None) -> bool:
    if vm.state == "failed" and state != "failed":
        text = vm.failure.text if vm.failure else "no reason is known"
        raise VmFailedMeanwhile(f"{vm.name!r} failed: {text}", value=vm.name, cure="See `holdfast vm log`.")
    return (not agent or vm.guest.agent == "connected") and (state is None or vm.state == state)


def command(
    name: VmArgument,
    agent: Annotated[bool, typer.Option("--agent", help="Until the guest's agent answers.")] = False,
    state: Annotated[str | None, typer.Option(help="Until the VM has this state.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 300.0,
) -> None:
    """Wait for a VM, by its events."""
    from holdfast.cli.session import connect

    if not agent and state is None:
        raise NothingToWaitFor("nothing to wait for was named", cure="Give --agent or --state STATE.")
    end = time.monotonic() + timeout
    with connect() as client:
        vm_id = client.vm(name).id
        # A beat (None) looks again too: the first one closes the gap before the stream stood.
        for _ in client.events(subject=name, until=end):
            if _reached(client.vm(vm_id), agent, state):
                return
    raise WaitTimedOut(
        f"{name!r} did not come so far within {timeout:g} s",
        value=timeout,
        cure="Look at `holdfast vm log` and `holdfast vm screenshot`, or give it longer.",
    )
