"""Network cards: virtio-net, each on a PCIe port of its own; they carry no boot ROM."""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.ports import NIC_PORTS
from holdfast.machine.devices.quoting import option
from holdfast.spec.attachment import NicAttachment, TapAttachment, UnpluggedAttachment
from holdfast.spec.vm import Nic


def nics(cards: Sequence[tuple[Nic, NicAttachment]], ports: int | None = None) -> list[str]:
    """The device of a card is `nic-<id>`, its backend `net-<id>`.

    `ports` is how many there are for cards; None: as many as these ones get. Raises TooManyDevices.
    """
    places = NIC_PORTS.places(card.id for card, _ in cards)
    parts = NIC_PORTS.ports(NIC_PORTS.count(places.values()) if ports is None else ports)
    for card, attachment in cards:
        parts += option("-netdev", backend(card, attachment))
        parts += option("-device", front(card, places[card.id]))
    return parts


def device_id(nic: str) -> str:
    return f"nic-{nic}"


def backend_id(nic: str) -> str:
    return f"net-{nic}"


def front(card: Nic, place: int) -> dict[str, Any]:
    """What the guest sees: the device, as `device_add` takes it; `place` is the number of its port."""
    return {
        "driver": "virtio-net-pci",
        "id": device_id(card.id),
        "bus": NIC_PORTS.port(place),
        "netdev": backend_id(card.id),
        "mac": card.mac,
        "romfile": "",
    }


def backend(card: Nic, attachment: NicAttachment) -> dict[str, Any]:
    """The host's side, as `netdev_add` takes it (QAPI Netdev), with descriptors by number."""
    return {"id": backend_id(card.id), **_network(attachment)}


def _network(attachment: NicAttachment) -> dict[str, Any]:
    if isinstance(attachment, TapAttachment):
        vhost = {} if attachment.vhost_fd is None else {"vhost": True, "vhostfd": str(attachment.vhost_fd)}
        return {"type": "tap", "fd": str(attachment.fd), **vhost}
    if isinstance(attachment, UnpluggedAttachment):
        return {"type": "hubport", "hubid": attachment.hub}
    forwards = [{"str": f"tcp:127.0.0.1:{host}-:{guest}"} for host, guest in attachment.forwards]
    return {"type": "user", "hostname": attachment.host_name, "hostfwd": forwards}
