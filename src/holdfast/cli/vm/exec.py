"""`holdfast vm exec`."""

import sys
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm exec web -- uname -a"
_BY_SIGNAL = 128


def command(
    name: VmArgument,
    argv: Annotated[list[str], typer.Argument(help="Program and arguments, after `--`.")],
    stdin: Annotated[bool, typer.Option("--stdin", help="Send standard input along.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Run a program in the guest; its exit code becomes ours."""
    from holdfast.cli.output import escape, print_json, say
    from holdfast.cli.session import connect
    from holdfast.spec.vm_requests import ExecRequest

    given = sys.stdin.read(1024 * 1024) if stdin else None
    request = ExecRequest(argv=tuple(argv), stdin=given, timeout_seconds=timeout)
    with connect() as client:
        result = client.execute(name, request, timeout)
    if format_ is Format.JSON:
        print_json(result)
    else:
        sys.stdout.write(escape(result["stdout"], keep="\n\t"))
        sys.stderr.write(escape(result["stderr"], keep="\n\t"))
        if result["truncated"]:
            say("(the output was longer than what is shown)")
    code = result["exit_code"]
    raise typer.Exit(_BY_SIGNAL + (result["signal"] or 0) if code is None else code)
