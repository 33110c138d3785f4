"""`holdfast`: the command line. Errors end here: what, cure and id on stderr, and the code of their kind."""

import itertools
import json
import sys

import typer

from holdfast.cli.exit_codes import exit_code
from holdfast.cli.lazy import lazy_group
from holdfast.cli.output import escape, say
from holdfast.spec.errors import HoldfastError

_COMMANDS = {
    name: f"holdfast.cli.{name}"
    for name in (
        "vm",
        "checkpoint",
        "disk",
        "nic",
        "usb",
        "image",
        "pool",
        "switch",
        "trust",
        "certs",
        "replica",
        "host",
    )
}
_COMMANDS |= {name: f"holdfast.cli.{name}" for name in ("operation", "event", "token", "serve", "completion")}

app = typer.Typer(
    name="holdfast",
    cls=lazy_group(_COMMANDS),
    no_args_is_help=True,
    help="Virtual machines that this host holds fast.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root() -> None:
    pass


def report(error: HoldfastError, as_json: bool) -> None:
    wire = error.as_dict()
    if as_json:
        sys.stderr.write(json.dumps(wire) + "\n")
        return
    sys.stderr.write(f"Error: {escape(wire['message'])}\n")
    if wire["cure"]:
        sys.stderr.write(f"  {escape(wire['cure'])}\n")
    sys.stderr.write(f"  (id: {escape(wire['id'])})\n")


def main() -> None:
    arguments = sys.argv[1:]
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    as_json = "--format=json" in arguments or "json" in [
        after for before, after in itertools.pairwise(arguments) if before == "--format"
    ]
    try:
        app()
    except HoldfastError as error:
        report(error, as_json)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
