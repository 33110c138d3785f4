"""Network namespaces of the tests' own: the main thread moves into one, and every thread and process
that the test starts afterwards is born there. The machine's own network is never touched."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ip(*argv: str) -> str:
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True, timeout=20).stdout


@contextmanager
def own_namespace() -> Iterator[None]:
    """Skips the test where the host does not allow it."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("needs root and /dev/net/tun to make network namespaces")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.unshare(_CLONE_NEWNET))
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            _call(_libc.setns(home, _CLONE_NEWNET))
    finally:
        os.close(home)


class Peers:
    """Further namespaces, each joined to this one by a veth pair whose near end has a given name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, near: str, mac: str | None = None) -> str:
        name = f"hftest-{os.getpid()}-{len(self.names)}"
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
        if mac:
            ip("-n", name, "link", "set", "eth0", "address", mac)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("link", "set", near, "up")
        return name

    def run(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", name, *argv], check=False, capture_output=True, text=True, timeout=30
        )

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)
