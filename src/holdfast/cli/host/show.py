"""`holdfast host show`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast host show --format json"


def command(format_: FormatOption = Format.TABLE) -> None:
    """CPUs, NUMA nodes, memory and devices of this host."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.host import host_sheet

    with connect() as client:
        show(client.wire("GET", "/v1/host"), format_, host_sheet)
