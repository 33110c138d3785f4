"""`holdfast serve`: the daemon, in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "holdfast serve --state /srv/holdfast --listen 0.0.0.0:8443"


def command(
    state: Annotated[Path | None, typer.Option(help="Folder of records, images and VMs.")] = None,
    runtime: Annotated[Path | None, typer.Option(help="Folder of sockets; a short path.")] = None,
    socket: Annotated[Path | None, typer.Option(help="UNIX socket of the API.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT of the API over TLS.")] = None,
    replica_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT where other hosts may send replicas; none: nowhere.")
    ] = None,
    host_tpm: Annotated[
        str | None, typer.Option(help="This host's TPM: device:/dev/tpmrm0, swtpm: and a socket, none.")
    ] = None,
    tpm_authorities: Annotated[
        Path | None, typer.Option(help="PEM file of the TPM makers that this verifier trusts.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with these settings.")] = None,
) -> None:
    """Run the host daemon. Options win over HOLDFAST_* variables, those over the file."""
    import asyncio
    import importlib
    import os
    import sys
    from typing import Any

    from holdfast.cli.exit_codes import exit_code
    from holdfast.cli.main import report
    from holdfast.daemon_config import load
    from holdfast.spec.errors import HoldfastError

    async def serve() -> None:
        try:
            await importlib.import_module("holdfast.daemon").run(settings)
        except HoldfastError as error:
            report(error, as_json=False)
            sys.stderr.flush()
            # As at its usual end: what the engine's threads are in the middle of goes on at the next start.
            os._exit(exit_code(error))

    options: dict[str, Any] = {"state": state, "runtime": runtime, "socket": socket, "listen": listen}
    options |= {"replica_listen": replica_listen}
    options |= {"host_tpm": host_tpm, "tpm_authorities": tpm_authorities}
    settings = load(options, config)
    # The standard loop: uvloop starts no child processes as another user.
    asyncio.run(serve())
