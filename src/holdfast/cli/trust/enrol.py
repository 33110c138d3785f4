"""`holdfast trust enrol`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.spec.errors import InvalidInput

EXAMPLE = (
    "holdfast trust enrol https://host2:8443 --fingerprint sha256:... --token-file host2.token "
    "--verifier https://host1:8443"
)


class NoVerifierAddress(InvalidInput):
    id = "no-verifier-address"


def command(
    host: Annotated[str, typer.Argument(help="The host's daemon: https://HOST:PORT.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="Of the certificate that the host shows: sha256:...")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with an admin's token of that host.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Who vouches for the host's certificate, instead.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for it; else that of its address.")] = None,
    verifier: Annotated[
        str | None, typer.Option(help="This daemon as that host reaches it: https://HOST:PORT.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Know a host by its TPM, and what it boots to now as what it must boot to. Run at the verifier."""
    import os

    from holdfast.api.client import Client, Place
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect
    from holdfast.cli.trust import enrolling

    address = verifier or os.environ.get("HOLDFAST_URL")
    if not address:
        raise NoVerifierAddress(
            "the host must know where it attests to", cure="Name this daemon's own address with --verifier."
        )
    there = Place(url=host, fingerprint=fingerprint, ca=ca, token_file=token_file)
    with connect() as here, Client(there) as remote:
        enrolled = enrolling.enrol(here, remote, name or enrolling.name_of(host), address, say)
    if format_ is Format.JSON:
        print_json(enrolled)
        return
    for finding in enrolled["last"]["findings"]:
        if finding["severity"] != "info":
            say(f"Note: {finding['text']}.")
    say(f"host {enrolled['name']!r} is enrolled; it must boot to the PCRs that it has now")
