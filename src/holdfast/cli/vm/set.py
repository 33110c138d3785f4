"""`holdfast vm set`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.spec.errors import InvalidInput


class NothingToChange(InvalidInput):
    id = "nothing-to-change"


EXAMPLE = "holdfast vm set web --cpus 4 --memory 2GiB"


def command(
    name: VmArgument,
    cpus: Annotated[
        int | None, typer.Option(help="Virtual CPUs; at once where the machine has room.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="For example 2GiB; at once where the machine has room.")
    ] = None,
    secure_boot: Annotated[bool | None, typer.Option("--secure-boot/--no-secure-boot")] = None,
    guest_agent: Annotated[bool | None, typer.Option("--guest-agent/--no-guest-agent")] = None,
    iso: Annotated[str | None, typer.Option(help="ISO file or image; '' empties the drive.")] = None,
    template: Annotated[
        bool | None, typer.Option("--template/--no-template", help="A template is cloned and never started.")
    ] = None,
    attested: Annotated[
        bool | None,
        typer.Option(
            "--require-attested-host/--no-require-attested-host",
            help="Start only while the host's verifier trusts it.",
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Change settings: CPUs, memory and the CD at once where the VM runs, the others at its next start.

    `vm show` tells what waits for the next start, and why.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import image_of
    from holdfast.cli.vm_output import show_vm

    if (cpus, memory, secure_boot, guest_agent, iso, template, attested) == (None,) * 7:
        raise NothingToChange("no setting was named", cure="See `holdfast vm set --help`.")
    with connect() as client:
        disc = image_of(client, iso, "iso") if iso else iso
        body = {
            "cpus": cpus,
            "memory": memory,
            "secure_boot": secure_boot,
            "guest_agent": guest_agent,
            "iso": disc,
            "template": template,
            "require_attested_host": attested,
        }
        show_vm(client, client.wire("PATCH", vm_path(name), body), format_)
