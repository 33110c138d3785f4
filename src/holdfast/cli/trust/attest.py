"""`holdfast trust attest`."""

import sys

import typer

from holdfast.cli.exit_codes import VERDICT_FAILED
from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast trust attest web --format json"


def command(name: VmArgument, no_wait: NoWait = False, format_: FormatOption = Format.TABLE) -> None:
    """Ask a VM's TPM for a fresh quote and judge it; exit code 12 where the verdict is `fail`."""
    from holdfast.cli.output import print_json
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import verdict_sheet
    from holdfast.cli.trust_paths import trust_path
    from holdfast.cli.waiting import ended, finish

    with connect() as client:
        begun = client.wire("POST", trust_path(name, "attest"))
        if no_wait:
            finish(client, begun, format_, no_wait)
            return
        verdict = ended(client, begun).result or {}
    if format_ is Format.JSON:
        print_json(verdict)
    else:
        sys.stdout.write(verdict_sheet(verdict))
    if verdict.get("verdict") != "pass":
        raise typer.Exit(VERDICT_FAILED)
