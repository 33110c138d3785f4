"""`holdfast replica accept`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica accept --vms 20 --space 500GiB"


def command(
    vms: Annotated[int, typer.Option(help="How many VMs the host that pairs may send.")] = 100,
    space: Annotated[str | None, typer.Option(help="Room for all of them, such as 500GiB.")] = None,
    minutes: Annotated[int, typer.Option(help="How long the token is of use.")] = 60,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Let one host pair with this one. Prints a token on stdout, which is of use once."""
    import sys

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    limits = {"vms": vms, "space": space}
    with connect() as client:
        made = client.wire("POST", "/v1/replica/tokens", {"limits": limits, "minutes": minutes})
    if format_ is Format.JSON:
        print_json(made)
        return
    say("On the sending host: holdfast replica peer add NAME https://THIS-HOST:PORT, and give it this token:")
    sys.stdout.write(made["token"] + "\n")
