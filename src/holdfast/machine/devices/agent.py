"""The guest agent's channel (qemu-ga): a virtio port with the name that the agent looks for."""

from pathlib import Path

from holdfast.machine.devices.quoting import device, quoted


def agent(socket: Path) -> list[str]:
    channel = f"socket,id=agent,path={quoted(socket)},server=on,wait=off"
    parts = ["-chardev", channel, *device("virtio-serial-pci", id="vserial", bus="pcie.0", addr="0x6")]
    name = "org.qemu.guest_agent.0"
    return parts + device("virtserialport", id="agent0", bus="vserial.0", nr=1, chardev="agent", name=name)
