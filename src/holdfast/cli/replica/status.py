"""`holdfast replica status`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica status web --watch"


def command(
    vm: Annotated[str | None, typer.Argument(help="One VM; none: all that are replicated.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew each second, until Ctrl-C; in a pipe as rows.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Show how current the replicas of this host's VMs are, and what is not as it should be."""
    import sys

    from holdfast.cli.output import print_json
    from holdfast.cli.replica import watching
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.replica import status_lines

    with connect() as client:

        def ask() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = client.wire("GET", "/v1/replica/status", query={"vm": vm})
            return found

        if watch:
            watching.watch(ask, format_)
        elif format_ is Format.JSON:
            print_json(ask())
        else:
            sys.stdout.write("".join(f"{line}\n" for line in status_lines(ask())))
