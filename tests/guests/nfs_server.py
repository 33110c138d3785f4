"""A real NFS server in user space, nfs-ganesha from Debian's packages, that a test starts and kills.

It speaks NFSv4 on the usual port of every address, which is why it wants a network namespace of the test's
own. `switch` lets somebody inside a guest start and stop it.
"""

import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EXPORT = "/vms"
_PORT = 2049
_CONF = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {port}; Enable_NLM = false;
    Enable_RQUOTA = false; Enable_UDP = false; }}
NFSv4 {{ Grace_Period = 5; Lease_Lifetime = 5; RecoveryBackend = fs; RecoveryRoot = "{folder}/recovery";
    Only_Numeric_Owners = true; }}
EXPORT {{ Export_Id = 1; Path = "{folder}/export"; Pseudo = {export}; Access_Type = RW;
    Squash = No_Root_Squash; Protocols = 4; Transports = TCP; SecType = sys; FSAL {{ Name = VFS; }} }}
"""


def installed() -> bool:
    return shutil.which("ganesha.nfsd") is not None


class NfsServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("export", "recovery"):
            (folder / name).mkdir(parents=True)
        (folder / "conf").write_text(_CONF.format(folder=folder, port=_PORT, export=EXPORT))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        conf, log, pid = (str(self.folder / name) for name in ("conf", "log", "pid"))
        argv = ["ganesha.nfsd", "-F", "-f", conf, "-L", log, "-p", pid]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", _PORT), 1):
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def switch(server: NfsServer) -> Iterator[int]:
    """The port of 127.0.0.1 that takes `start` and `stop`, each a line that is sent back when it is done."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            word = self.rfile.readline(16)
            {b"start\n": server.start, b"stop\n": server.stop}[word]()
            self.wfile.write(word)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()
