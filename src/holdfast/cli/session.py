"""Which daemon a command speaks to: HOLDFAST_URL with HOLDFAST_FINGERPRINT, else a UNIX socket."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.api.client import Client


def connect() -> "Client":
    from holdfast.api.client import Client, Place
    from holdfast.daemon_config import load

    url = os.environ.get("HOLDFAST_URL")
    if url:
        ca = os.environ.get("HOLDFAST_CA")
        return Client(
            Place(url=url, fingerprint=os.environ.get("HOLDFAST_FINGERPRINT"), ca=Path(ca) if ca else None)
        )
    return Client(Place(socket=load({}).unix_socket))
