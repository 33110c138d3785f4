"""The monitor (QMP): on a socket that we hand over listening, or that QEMU makes."""

from pathlib import Path

from holdfast.machine.devices.quoting import quoted


def monitor(socket: Path, fd: int) -> list[str]:
    """`fd` is an inherited, listening UNIX socket; negative where QEMU shall make `socket` itself."""
    where = f"fd={fd}" if fd >= 0 else f"path={quoted(socket)}"
    channel = f"socket,id=monitor,{where},server=on,wait=off"
    return ["-chardev", channel, "-mon", "chardev=monitor,mode=control"]
