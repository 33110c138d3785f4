"""`holdfast vm create`."""

from typing import Annotated, Any

import typer

from holdfast.cli.names import complete_image, complete_pool, complete_switch
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait
from holdfast.spec.errors import InvalidInput


class VlanWithoutSwitch(InvalidInput):
    id = "vlan-without-switch"


class InitrdWithoutKernel(InvalidInput):
    id = "initrd-without-kernel"


class RecoveryKeyNotNow(InvalidInput):
    id = "recovery-key-not-now"


ImageOption = Annotated[
    str | None, typer.Option(help="Image of the first disk.", autocompletion=complete_image)
]
PoolOption = Annotated[
    str | None, typer.Option(help="Pool of its disks; none: its own folder.", autocompletion=complete_pool)
]
RecoveryKeyOption = Annotated[
    bool, typer.Option("--recovery-key", help="Also print the recovery key of its TPM, this once.")
]
EXAMPLE = "holdfast vm create web --image debian-12 --cpus 2 --memory 1GiB --disk 8GiB --user me --start"


def _require_partners(vlan: int | None, switch: str | None, initrd: str | None, kernel: str | None) -> None:
    """Options that mean nothing without another. Raises VlanWithoutSwitch, InitrdWithoutKernel."""
    if vlan is not None and switch is None:
        raise VlanWithoutSwitch(f"VLAN {vlan} needs a switch", value=vlan, cure="Name it with --switch NAME.")
    if initrd and not kernel:
        raise InitrdWithoutKernel("an initrd needs a kernel", cure="Name it with --kernel FILE.")


def _require_recoverable(wanted: bool, vtpm: bool, no_wait: bool) -> None:
    """Raises RecoveryKeyNotNow."""
    if wanted and (not vtpm or no_wait):
        raise RecoveryKeyNotNow(
            "a VM without a vTPM has no recovery key" if not vtpm else "--recovery-key needs the finished VM",
            cure="Leave out --recovery-key."
            if not vtpm
            else "Ask for it later: `holdfast trust recovery-key`.",
        )


def _finish(
    client: Any, wire: dict[str, Any], name: str, recovery_key: bool, format_: Format, no_wait: bool
) -> None:
    from holdfast.cli.output import print_json
    from holdfast.cli.recovery import new_recovery_key, show_recovery_key
    from holdfast.cli.waiting import finish

    if not recovery_key:
        finish(client, wire, format_, no_wait)
        return
    done = finish(client, wire, Format.TABLE)
    if format_ is Format.JSON:
        print_json({**done, "recovery_key": new_recovery_key(client, name)})
    else:
        show_recovery_key(client, name, False, format_)


def _disks(image: str | None, sizes: list[str], full_copy: bool, pool: str | None) -> list[dict[str, Any]]:
    first = {"image": image, "size": sizes[0] if sizes else None, "full_copy": full_copy, "pool": pool}
    return [first, *({"size": size, "pool": pool} for size in sizes[1:])]


def _cloud_init(user: str | None, keys: list[str], user_data: str | None) -> dict[str, Any]:
    from holdfast.cli.uploading import text_of

    return {
        "user": user,
        "ssh_keys": [text_of(key) for key in keys],
        "user_data": text_of(user_data) if user_data else None,
    }


def _kernel(client: Any, kernel: str, initrd: str | None, append: str) -> dict[str, Any]:
    from holdfast.cli.uploading import image_of

    source = {"kernel": image_of(client, kernel, "kernel"), "append": append}
    return {**source, "initrd": image_of(client, initrd, "initrd")} if initrd else source


def command(
    name: Annotated[str, typer.Argument(help="A name for the VM.")],
    image: ImageOption = None,
    cpus: Annotated[int, typer.Option(help="Virtual CPUs.")] = 1,
    memory: Annotated[str, typer.Option(help="For example 1GiB.")] = "1GiB",
    disk: Annotated[
        list[str] | None,
        typer.Option(help="Size, for example 8GiB; the first holds the image, each further one is empty."),
    ] = None,
    pool: PoolOption = None,
    switch: Annotated[
        str | None, typer.Option(help="Switch; none: user-mode network.", autocompletion=complete_switch)
    ] = None,
    vlan: Annotated[int | None, typer.Option(help="VLAN of its port on the switch, 1 to 4094.")] = None,
    mac: Annotated[str | None, typer.Option(help="MAC address; none: a free one.")] = None,
    user: Annotated[str | None, typer.Option(help="User that cloud-init makes.")] = None,
    ssh_key: Annotated[list[str] | None, typer.Option(help="Public key, or a file with one.")] = None,
    cloud_init: Annotated[str | None, typer.Option(help="File with cloud-init user data.")] = None,
    iso: Annotated[str | None, typer.Option(help="ISO file or image to start from.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Kernel file or image, started directly.")] = None,
    initrd: Annotated[str | None, typer.Option(help="Its initial RAM disk.")] = None,
    append: Annotated[str, typer.Option(help="Its command line.")] = "",
    os: Annotated[str, typer.Option(help="linux or windows: tunes the hardware.")] = "linux",
    secure_boot: Annotated[bool, typer.Option("--secure-boot/--no-secure-boot")] = True,
    tpm: Annotated[bool, typer.Option("--tpm/--no-tpm")] = True,
    guest_agent: Annotated[bool, typer.Option("--guest-agent/--no-guest-agent")] = True,
    full_copy: Annotated[bool, typer.Option("--full-copy", help="Copy the image whole.")] = False,
    recovery_key: RecoveryKeyOption = False,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a VM. Files are sent to the daemon; it never opens a path itself."""
    _require_partners(vlan, switch, initrd, kernel)
    _require_recoverable(recovery_key, tpm and not kernel, no_wait)
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import image_of

    body: dict[str, Any] = {
        "name": name,
        "cpus": cpus,
        "memory": memory,
        "os": os,
        "secure_boot": secure_boot,
        "tpm": tpm,
        "guest_agent": guest_agent,
        "nics": [{"switch": switch, "vlan": vlan, "mac": mac}],
        "start": start,
    }
    if image or disk:
        body["disks"] = _disks(image, disk or [], full_copy, pool)
    if user or ssh_key or cloud_init:
        body["cloud_init"] = _cloud_init(user, ssh_key or [], cloud_init)
    with connect() as client:
        if iso:
            body["iso"] = image_of(client, iso, "iso")
        if kernel:
            body["kernel"] = _kernel(client, kernel, initrd, append)
        _finish(client, client.wire("POST", "/v1/vms", body), name, recovery_key, format_, no_wait)
