"""UNIX sockets that we open and a child serves: they are there before the child runs.

Who connects therefore never waits for a file to appear, and the child needs no right to the folder.
"""

import os
import socket
from pathlib import Path

from holdfast.host.processes import Identity


def listening(path: Path, identity: Identity | None = None, waiting: int = 1) -> socket.socket:
    """A listening stream socket at `path` (replaced if there), 0600, for `identity` to connect to.

    `waiting`: connections that may wait to be accepted.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        if identity:
            os.chown(path, identity.uid, identity.gid)
        listener.listen(waiting)
    except BaseException:
        listener.close()
        raise
    return listener
