"""The serial console: a socket for whoever looks on, and a log of all that was said."""

from pathlib import Path

from holdfast.machine.devices.quoting import device, quoted


def console(socket: Path, log: Path) -> list[str]:
    channel = f"socket,id=console,path={quoted(socket)},server=on,wait=off"
    logged = f"{channel},logfile={quoted(log)},logappend=on"
    return ["-chardev", logged, *device("isa-serial", id="serial0", chardev="console")]
