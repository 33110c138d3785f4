"""`holdfast disk limit`."""

from typing import Annotated

import typer

from holdfast.cli.names import DiskArgument, VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast disk limit web disk1 --iops 500 --bandwidth 100MiB --burst-iops 2000 --burst-seconds 10"


class NoLimitNamed(InvalidInput):
    id = "no-limit-named"


def command(
    name: VmArgument,
    disk: DiskArgument,
    iops: Annotated[int | None, typer.Option(help="Requests a second; 0 lifts a limit.")] = None,
    iops_read: Annotated[int | None, typer.Option(help="Reads a second.")] = None,
    iops_write: Annotated[int | None, typer.Option(help="Writes a second.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Bytes a second, for example 100MiB.")] = None,
    bandwidth_read: Annotated[str | None, typer.Option(help="Bytes read a second.")] = None,
    bandwidth_write: Annotated[str | None, typer.Option(help="Bytes written a second.")] = None,
    burst_iops: Annotated[int | None, typer.Option(help="Requests a second for a short time.")] = None,
    burst_bandwidth: Annotated[str | None, typer.Option(help="Bytes a second for a short time.")] = None,
    burst_seconds: Annotated[int | None, typer.Option(help="How long a burst may be.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Lift all limits.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Limit what a disk may do in a second, at once and at every start; what is not named stays as it is."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import disk_path, disk_sheet

    rates = {
        "iops": iops,
        "iops_read": iops_read,
        "iops_write": iops_write,
        "bandwidth": bandwidth,
        "bandwidth_read": bandwidth_read,
        "bandwidth_write": bandwidth_write,
        "burst_iops": burst_iops,
        "burst_bandwidth": burst_bandwidth,
    }
    body: dict[str, int | str | None] = {**(dict.fromkeys(rates, 0) if none else {})}
    body |= {key: value for key, value in rates.items() if value is not None}
    if burst_seconds is not None or none:
        body["burst_seconds"] = burst_seconds or 1
    if not body:
        raise NoLimitNamed("no limit was named", cure="See `holdfast disk limit --help`.")
    with connect() as client:
        show(client.wire("PATCH", vm_path(name, disk_path(disk, "limits")), body), format_, disk_sheet)
