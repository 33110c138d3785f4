"""Does a daemon answer on this socket? Exit status 0 when it does.

With --seconds it waits for that; with --process it gives up as soon as that process has ended.
Only the standard library, since it runs before anything is known to work.
"""

import argparse
import http.client
import os
import select
import socket
import sys
import time


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def healthy(path: str) -> bool:
    connection = UnixConnection(path, timeout=10)
    try:
        connection.request("GET", "/v1/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("--process", type=int)
    parser.add_argument("--seconds", type=float, default=0)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    watched: list[int] = []
    if options.process is not None:
        try:
            watched.append(os.pidfd_open(options.process))
        except ProcessLookupError:
            return 1
    while not healthy(options.socket):
        if time.monotonic() >= end:
            return 1
        # Nothing tells when a socket of another process begins to answer; its end is told.
        if select.select(watched, [], [], 0.1)[0]:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
