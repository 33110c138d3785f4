"""`holdfast trust secret add`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.secret_input import NoSecretGiven
from holdfast.cli.uploading import NoSuchFile

EXAMPLE = "holdfast trust secret add web disk-key --from key.bin"


def command(
    name: VmArgument,
    secret: Annotated[str, typer.Argument(metavar="SECRET", help="Its name.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A file, whole; without it standard input, whole.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Keep a secret for a VM; `trust release` gives it to the guest while that passes."""
    from base64 import b64encode

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect
    from holdfast.cli.trust_paths import trust_path

    content = _read(source)
    body = {"name": secret, "content": b64encode(content).decode("ascii")}
    with connect() as client:
        view = client.wire("PUT", trust_path(name, "secrets"), body)
    if format_ is Format.JSON:
        print_json(view)
    else:
        say(f"secret {view['name']!r} of {view['size']} bytes is kept for {name!r}")


def _read(source: Path | None) -> bytes:
    from holdfast.spec.released import MAX_SECRET

    try:
        if source is None or str(source) == "-":
            content = sys.stdin.buffer.read(MAX_SECRET + 1)
        else:
            with source.expanduser().open("rb") as file:
                content = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise NoSuchFile(f"no secret can be read from {str(source)!r}", value=str(source)) from error
    if not content:
        raise NoSecretGiven("no secret was given", cure="Name a file with --from, or pipe it in.")
    return content
