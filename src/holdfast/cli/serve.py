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
    config: Annotated[Path | None, typer.Option(help="TOML file with these settings.")] = None,
) -> None:
    """Run the host daemon. Options win over HOLDFAST_* variables, those over the file."""
    import asyncio
    import importlib

    from holdfast.daemon_config import load

    settings = load({"state": state, "runtime": runtime, "socket": socket, "listen": listen}, config)
    # The standard loop: uvloop starts no child processes as another user.
    asyncio.run(importlib.import_module("holdfast.daemon").run(settings))
