"""`holdfast certs enrol`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast certs enrol web --pk pk.pem --kek kek.pem --db signer.pem"

_Files = list[Path] | None


def command(
    name: VmArgument,
    pk: Annotated[Path | None, typer.Option(help="Your platform key; replaces the present one.")] = None,
    kek: Annotated[_Files, typer.Option(help="May change db and dbx; can be given several times.")] = None,
    db: Annotated[_Files, typer.Option(help="Signs loaders; can be given several times.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Instead of what KEK and db hold now.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where the VM would not boot then.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Put your own certificates (PEM or DER) into a VM's variable store."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import say
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.certificates import outcomes
    from holdfast.cli.uploading import base64_of
    from holdfast.cli.waiting import finish

    body = {
        "pk": base64_of(pk) if pk else None,
        "kek": [base64_of(each) for each in kek or ()],
        "db": [base64_of(each) for each in db or ()],
        "replace": replace,
        "force": force,
    }
    with connect() as client:
        done = finish(client, client.wire("POST", vm_path(name, "certs/enrol"), body), format_, no_wait)
    for line in outcomes(done):
        say(line)
