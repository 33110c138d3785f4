"""`holdfast vm clone`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast vm clone web web-2"


def command(
    name: VmArgument,
    new_name: Annotated[str, typer.Argument(help="Name of the copy.")],
    full_copy: Annotated[bool, typer.Option("--full-copy", help="Copy the disks whole.")] = False,
    same_tpm: Annotated[
        bool,
        typer.Option("--same-tpm", help="Keep the TPM's identity and secrets: for a move, not for a copy."),
    ] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Copy a VM, its disks and its firmware state.

    The copy gets a TPM identity of its own, and what the VM sealed in its TPM does not open there, unless
    --same-tpm is given.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.output import say
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    body = {"name": new_name, "full_copy": full_copy, "same_tpm": same_tpm}
    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "clone"), body), format_, no_wait)
    if same_tpm:
        say(f"{new_name} has the TPM identity of {name} and opens what {name} sealed in its TPM.")
        say(f"The two must never both run, here or elsewhere: delete {name} when the move is done.")
    else:
        say(f"{new_name} has a TPM identity of its own, if any: what {name} sealed in its TPM does not open")
        say(f"there, so an encrypted disk asks for its recovery key. (--same-tpm keeps the TPM of {name}.)")
