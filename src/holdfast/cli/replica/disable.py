"""`holdfast replica disable`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica disable web"


def command(vm: str, format_: FormatOption = Format.TABLE) -> None:
    """Replicate a VM no more. What the other host holds stays there."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/vms/{quote(vm, safe='')}/replica")
    if format_ is Format.JSON:
        print_json({"disabled": vm})
    else:
        say(f"VM {vm!r} is replicated no more")
