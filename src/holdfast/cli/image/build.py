"""`holdfast image build`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast image build debian-12"


def command(
    recipe: Annotated[str, typer.Argument(help="debian-12 or debian-13.")],
    name: Annotated[str | None, typer.Option(help="Name of the image.")] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Build an image from the distribution's packages."""
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(
            client,
            client.wire("POST", "/v1/images/build", {"recipe": recipe, "name": name}),
            format_,
            no_wait,
        )
