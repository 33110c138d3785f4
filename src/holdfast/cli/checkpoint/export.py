"""`holdfast checkpoint export`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast checkpoint export web before-upgrade --to web-before-upgrade --recipient backup.pem"


def command(
    vm: VmOption,
    name: CheckpointArgument,
    to: Annotated[Path, typer.Option(help="Folder to make; it must not exist.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase in its first line; -: standard input.")
    ] = None,
    recipient: Annotated[
        Path | None, typer.Option(help="Public key or certificate (PEM) of who may open the firmware state.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Write a checkpoint to a folder: each disk in one qcow2 file, what describes it, its firmware state.

    The firmware state is encrypted for a passphrase (asked for where no file names it) or for the owner of
    a public key. Memory is not exported.
    """
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.fetching import fetch_all
    from holdfast.cli.output import print_json, say
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import text_of
    from holdfast.cli.waiting import ended
    from holdfast.cli.writing import new_folder, write_new

    with connect() as client:
        uefi = client.wire("GET", checkpoint_path(vm, name))["has_firmware_state"]
        body: dict[str, str] = {}
        if uefi and recipient is not None:
            body["recipient"] = text_of(str(recipient))
        if uefi and (recipient is None or passphrase_file is not None):
            body["passphrase"] = passphrase(passphrase_file, twice=True)
        new_folder(to)
        if uefi:
            state = client.content("POST", checkpoint_path(vm, name, "firmware-state"), body)
            write_new(to / "firmware.hfstate", state)
        made = ended(client, client.wire("POST", checkpoint_path(vm, name, "export"))).result
        try:
            fetch_all(client, made["export"], made["files"], to)
        finally:
            client.wire("DELETE", f"/v1/exports/{made['export']}")
    files = sorted(path.name for path in to.iterdir())
    if format_ is Format.JSON:
        print_json({"vm": vm, "checkpoint": name, "folder": str(to), "files": files})
        return
    say(f"Wrote {', '.join(files)} to {to}.")
