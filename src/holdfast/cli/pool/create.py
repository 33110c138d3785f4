"""`holdfast pool create`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast pool create fast --kind directory --path /srv/fast"

_NEEDED = {
    "directory": ("path",),
    "lvm-thin": ("group", "thin-pool"),
    "block-device": ("device",),
    "nfs": ("server", "export"),
    "rbd": ("ceph-pool", "keyring"),
}
_MAY = {"rbd": ("user", "conf")}


class PoolOptionsDoNotFit(InvalidInput):
    id = "pool-options-do-not-fit"


def _spec(kind: str, given: dict[str, str | None], disk_format: str | None) -> dict[str, Any]:
    """The options of a kind, all of them and no other. Raises PoolOptionsDoNotFit."""
    needed = _NEEDED.get(kind)
    if needed is None:
        raise PoolOptionsDoNotFit(
            f"there is no kind of pool {kind!r}", value=kind, cure=f"Use one of {', '.join(_NEEDED)}."
        )
    named = {name for name, value in given.items() if value is not None}
    if not set(needed) <= named <= {*needed, *_MAY.get(kind, ())}:
        wanted = " and ".join(f"--{name}" for name in needed)
        raise PoolOptionsDoNotFit(
            f"a pool of kind {kind} takes {wanted}", value=sorted(named), cure=f"Give {wanted}, no other."
        )
    spec: dict[str, Any] = {"kind": kind, **{name.replace("-", "_"): given[name] for name in named}}
    return spec | ({"format": disk_format} if disk_format else {})


def command(
    name: Annotated[str, typer.Argument(help="A name for the pool.")],
    kind: Annotated[str, typer.Option(help="directory, lvm-thin, block-device, nfs or rbd.")] = "directory",
    path: Annotated[str | None, typer.Option(help="Directory: empty, and the daemon's alone.")] = None,
    group: Annotated[str | None, typer.Option(help="LVM: the volume group.")] = None,
    thin_pool: Annotated[str | None, typer.Option(help="LVM: its thin pool.")] = None,
    device: Annotated[str | None, typer.Option(help="Block device that is the pool's alone.")] = None,
    erase: Annotated[bool, typer.Option("--erase", help="Destroy what is on the device.")] = False,
    server: Annotated[str | None, typer.Option(help="NFS: name or address of the server.")] = None,
    export: Annotated[str | None, typer.Option(help="NFS: the directory that it exports.")] = None,
    ceph_pool: Annotated[str | None, typer.Option(help="Ceph: the cluster's pool.")] = None,
    user: Annotated[str | None, typer.Option(help="Ceph: the client, without `client.`.")] = None,
    keyring: Annotated[str | None, typer.Option(help="Ceph: file on the host with its key.")] = None,
    conf: Annotated[str | None, typer.Option(help="Ceph: the cluster's ceph.conf on the host.")] = None,
    disk_format: Annotated[
        str | None, typer.Option(help="qcow2 or raw, of new disks that stand alone (directory, nfs).")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a pool."""
    given = {"path": path, "group": group, "thin-pool": thin_pool, "device": device}
    given |= {"server": server, "export": export}
    given |= {"ceph-pool": ceph_pool, "user": user, "keyring": keyring, "conf": conf}
    spec = _spec(kind, given, disk_format)
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.pool import pool_sheet

    with connect() as client:
        wire = client.wire("POST", "/v1/pools", {"name": name, "spec": spec, "erase": erase})
        show(wire, format_, pool_sheet)
