"""`holdfast replica peer list`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica peer list --format json"


def command(format_: FormatOption = Format.TABLE) -> None:
    """List the hosts that are paired with this one."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment

    with connect() as client:
        items = client.wire("GET", "/v1/replica/peers")
    show_list(items, ("name", "role", "address", "vms", "limit", "paired"), format_, {"paired": moment})
