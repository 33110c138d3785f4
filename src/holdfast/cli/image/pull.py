"""`holdfast image pull`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast image pull debian-12-cloud"


def command(
    source: Annotated[str, typer.Argument(help="A name of the catalogue, or an https URL.")],
    name: Annotated[str | None, typer.Option(help="Name of the image.")] = None,
    checksum: Annotated[str | None, typer.Option(help="sha256:... or sha512:...")] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Fetch an image, with its checksum."""
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(
            client,
            client.wire("POST", "/v1/images/pull", {"source": source, "name": name, "checksum": checksum}),
            format_,
            no_wait,
        )
