"""Network cards: virtio-net, each on a PCIe root port of its own."""

from holdfast.machine.devices.quoting import quoted
from holdfast.spec.attachment import NicAttachment, SlirpAttachment, TapAttachment
from holdfast.spec.vm import Nic


def nic(index: int, card: Nic, attachment: NicAttachment) -> list[str]:
    net = f"net{index}"
    if isinstance(attachment, TapAttachment):
        vhost = f",vhost=on,vhostfd={attachment.vhost_fd}" if attachment.vhost_fd is not None else ""
        backend = f"tap,id={net},fd={attachment.fd}{vhost}"
    elif isinstance(attachment, SlirpAttachment):
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in attachment.forwards)
        backend = f"user,id={net},hostname={quoted(attachment.host_name)}{forwards}"
    else:
        backend = f"stream,id={net},server=off,addr.type=unix,addr.path={quoted(attachment.path)}"
    port = f"nic-port{index}"
    device = f"virtio-net-pci,id={card.id},netdev={net},mac={card.mac},bus={port},romfile="
    root = f"pcie-root-port,id={port},chassis={1 + index}"
    return ["-netdev", backend, "-device", root, "-device", device]
