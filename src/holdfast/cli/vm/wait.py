"""`holdfast vm wait`."""

import time
from typing import Annotated, Any

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption, print_json
from holdfast.spec.errors import Failed, InvalidInput, TimedOut
from holdfast.spec.vm import VmState

EXAMPLE = "holdfast vm wait web --agent --address --timeout 120"


class NothingToWaitFor(InvalidInput):
    id = "nothing-to-wait-for"


class NoSuchState(InvalidInput):
    id = "no-such-state"


class WaitTimedOut(TimedOut):
    id = "wait-timed-out"


class VmFailedMeanwhile(Failed):
    id = "vm-failed"


def _reached(vm: Any, agent: bool, address: bool, state: str | None) -> bool:
    if vm.state == "failed" and state != "failed":
        text = vm.failure.text if vm.failure else "no reason is known"
        raise VmFailedMeanwhile(f"{vm.name!r} failed: {text}", value=vm.name, cure="See `holdfast vm log`.")
    return (
        (not agent or vm.guest.agent == "connected")
        and (not address or bool(vm.addresses))
        and (state is None or vm.state == state)
    )


def command(
    name: VmArgument,
    agent: Annotated[bool, typer.Option("--agent", help="Until the guest's agent answers.")] = False,
    address: Annotated[bool, typer.Option("--address", help="Until the guest has an address.")] = False,
    state: Annotated[str | None, typer.Option(help="Until the VM has this state.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 300.0,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Wait for a VM, by its events; JSON is the VM as it then is."""
    from holdfast.cli.session import connect

    if not agent and not address and state is None:
        cure = "Give --agent, --address or --state STATE."
        raise NothingToWaitFor("nothing to wait for was named", cure=cure)
    if state is not None and state not in set(VmState):
        raise NoSuchState(
            f"{state!r} is not a state of a VM", value=state, cure=f"Use one of {', '.join(VmState)}."
        )
    end = time.monotonic() + timeout
    with connect() as client:
        vm_id = client.vm(name).id
        # A beat (None) looks again too: the first one closes the gap before the stream stood.
        for _ in client.events(subject=name, until=end):
            vm = client.vm(vm_id)
            if _reached(vm, agent, address, state):
                if format_ is Format.JSON:
                    print_json(vm.model_dump(mode="json"))
                return
    raise WaitTimedOut(
        f"{name!r} did not come so far within {timeout:g} s",
        value=timeout,
        cure="Look at `holdfast vm log` and `holdfast vm screenshot`, or give it longer.",
    )
