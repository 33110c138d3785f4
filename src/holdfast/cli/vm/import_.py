"""`holdfast vm import`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.names import complete_pool, complete_switch
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast vm import web.ova --switch 'VM Network=lan' --start"


class SwitchNotMapped(InvalidInput):
    id = "switch-not-mapped"


class NameForSeveral(InvalidInput):
    id = "name-for-several"


class PoolNotMapped(InvalidInput):
    id = "pool-not-mapped"


def _pools(pairs: list[str]) -> dict[str, str]:
    """`DISK=POOL`; a pool alone is for every disk. Raises PoolNotMapped."""
    found: dict[str, str] = {}
    for pair in pairs:
        disk, equals, pool = pair.rpartition("=")
        if not pool or (equals and not disk):
            raise PoolNotMapped(
                f"{pair!r} names no disk and pool", value=pair, cure="Write --pool POOL or --pool DISK=POOL."
            )
        found[disk or "*"] = pool
    return found


def _switches(pairs: list[str]) -> dict[str, str]:
    """`NETWORK=SWITCH`; a switch alone is for every network. Raises SwitchNotMapped."""
    found: dict[str, str] = {}
    for pair in pairs:
        network, equals, switch = pair.rpartition("=")
        if not switch or (equals and not network):
            raise SwitchNotMapped(
                f"{pair!r} names no network and switch", value=pair, cure="Write --switch 'NETWORK=SWITCH'."
            )
        found[network or "*"] = switch
    return found


SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        help="OVA, OVF, Hyper-V export, libvirt XML, Proxmox conf, disk, folder, URL or vsphere://."
    ),
]
SwitchOption = Annotated[
    list[str] | None,
    typer.Option(help="NETWORK=SWITCH, or a switch for all networks.", autocompletion=complete_switch),
]
PoolOption = Annotated[
    list[str] | None,
    typer.Option(help="A pool for all disks, or DISK=POOL as in the plan.", autocompletion=complete_pool),
]
WithOption = Annotated[
    list[Path] | None, typer.Option("--with", help="A disk that belongs to it and lies elsewhere.")
]
SecureBootOption = Annotated[
    bool | None, typer.Option("--secure-boot/--no-secure-boot", help="None: as it was.")
]
AcceptOption = Annotated[
    bool, typer.Option("--accept-eulas", "--accept-eula", help="Accept its licence agreements.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(help="Opens the firmware state that came along; the first line. -: standard input."),
]
PrivateKeyOption = Annotated[
    Path | None, typer.Option(help="Opens it where it was exported for a recipient (PEM); stays here.")
]
SameTpmOption = Annotated[
    bool, typer.Option("--same-tpm", help="It takes the place of a VM that is on this host too.")
]
TpmOption = Annotated[bool | None, typer.Option("--tpm/--no-tpm", help="None: as it was.")]
ListOption = Annotated[bool, typer.Option("--list", help="Only say what VMs a server of vSphere has.")]
WarmOption = Annotated[
    bool, typer.Option("--warm", help="From vSphere: copy it while it runs, then cut over.")
]
CutOverOption = Annotated[
    datetime | None, typer.Option(help="Of --warm: when it is shut down there; none: soon.")
]
PasswordFileOption = Annotated[
    Path | None, typer.Option(help="Its password, in a file of 0600 (`-`: standard input).")
]
ThumbprintOption = Annotated[
    str | None, typer.Option(help="SHA-256 of the server's certificate, to be trusted from now on.")
]


def _require_one_name(name: str | None, sources: int) -> None:
    """Raises NameForSeveral."""
    if name is not None and sources > 1:
        raise NameForSeveral(
            f"one name cannot be that of {sources} VMs",
            value=name,
            cure="Leave out --name, or give one source.",
        )


def command(
    source: SourcesArgument,
    name: Annotated[str | None, typer.Option(help="Name of the VM; none: the source's.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what maps, changes and is lost.")] = False,
    switch: SwitchOption = None,
    pool: PoolOption = None,
    with_: WithOption = None,
    machine: Annotated[str | None, typer.Option(help="Which one, where the source has several.")] = None,
    secure_boot: SecureBootOption = None,
    tpm: TpmOption = None,
    accept_eulas: AcceptOption = False,
    passphrase_file: PassphraseOption = None,
    private_key: PrivateKeyOption = None,
    same_tpm: SameTpmOption = False,
    checksum: Annotated[str | None, typer.Option(help="Of a URL: sha256:... or sha512:...")] = None,
    list_: ListOption = False,
    warm: WarmOption = False,
    cut_over_at: CutOverOption = None,
    user: Annotated[str | None, typer.Option(help="Of vSphere.")] = None,
    password_file: PasswordFileOption = None,
    thumbprint: ThumbprintOption = None,
    at_once: Annotated[int, typer.Option(min=1, max=32, help="Of several sources, so many at a time.")] = 2,
    start: Annotated[bool, typer.Option("--start", help="Start it when it is there.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Bring VMs over from VMware, Hyper-V, VirtualBox, Xen, Proxmox or libvirt.

    Nothing is unpacked: disks are read straight out of the archive, and its checksums are verified
    meanwhile. Several sources, or a folder with several, are imported each by an operation of its own. UEFI
    variables and TPM that `vm export --with-firmware-state` took along come back with what opens them.
    """
    from holdfast.cli.importing import Importer
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.session import connect
    from holdfast.cli.vsphere_import import VsphereOptions, import_from_vsphere, is_vsphere, refuse_of_files

    body: dict[str, Any] = {
        "name": name,
        "machine": machine,
        "switches": _switches(switch or []),
        "pools": _pools(pool or []),
        "secure_boot": secure_boot,
        "tpm": tpm,
        "accept_eulas": accept_eulas,
        "start": start,
    }
    options = VsphereOptions(user, password_file, thumbprint, list_, warm, cut_over_at)
    if is_vsphere(source):
        refuse_of_files(with_, machine, checksum, passphrase_file, private_key, same_tpm)
        import_from_vsphere(source, options, body, plan, no_wait, format_)
        return
    options.require_none()
    body["same_tpm"] = same_tpm
    if passphrase_file is not None:
        body["passphrase"] = passphrase(passphrase_file)
    importer = Importer(connect, body, format_, checksum=checksum, private_key=private_key)
    sources = importer.sources(source, with_ or [])
    _require_one_name(name, len(sources))
    importer.run(sources, plan, no_wait, at_once)
