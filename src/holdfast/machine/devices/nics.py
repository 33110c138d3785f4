"""Network cards: virtio-net, each on a PCIe port of its own; they carry no boot ROM."""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.ports import NIC_PORTS
from holdfast.machine.devices.quoting import device, option
from holdfast.spec.attachment import NicAttachment, TapAttachment
from holdfast.spec.vm import Nic


def nics(cards: Sequence[tuple[Nic, NicAttachment]]) -> list[str]:
    """The device of a card is `nic-<id>`, its backend `net-<id>`."""
    places = NIC_PORTS.places(card.id for card, _ in cards)
    parts = NIC_PORTS.ports(places.values())
    for card, attachment in cards:
        net = f"net-{card.id}"
        parts += option("-netdev", {"id": net, **_network(attachment)})
        parts += device(
            "virtio-net-pci",
            id=f"nic-{card.id}",
            bus=NIC_PORTS.port(places[card.id]),
            netdev=net,
            mac=card.mac,
            romfile="",
        )
    return parts


def _network(attachment: NicAttachment) -> dict[str, Any]:
    if isinstance(attachment, TapAttachment):
        vhost = {} if attachment.vhost_fd is None else {"vhost": True, "vhostfd": str(attachment.vhost_fd)}
        return {"type": "tap", "fd": str(attachment.fd), **vhost}
    forwards = [{"str": f"tcp:127.0.0.1:{host}-:{guest}"} for host, guest in attachment.forwards]
    return {"type": "user", "hostname": attachment.host_name, "hostfwd": forwards}
