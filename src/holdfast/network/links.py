"""Bridges and their ports in the kernel, by rtnetlink (rtnetlink(7)). Blocking: call in a thread.

The kernel owns the state; every function may be repeated. Names begin with `hfb` (bridge) or `hft`
(TAP), then four digits of the state folder's mark: two daemons on a host never touch each other's.
"""

import contextlib
import errno
import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from holdfast.spec.errors import Conflict, Failed, NotFound, Unsupported

_MAIN_TABLE = 254
_DEFAULT_VLAN = 1


class NetworkNotPermitted(Unsupported):
    id = "network-needs-privilege"


class VlansUnsupported(Unsupported):
    id = "vlans-unsupported"


class NetworkFailed(Failed):
    id = "network-failed"


class InterfaceMissing(NotFound):
    id = "interface-missing"


class InterfaceInUse(Conflict):
    id = "interface-in-use"


def bridge_name(mark: str, switch: str) -> str:
    """At most 15 characters (IFNAMSIZ); names that differ only in case give the same."""
    return f"hfb{mark[:4]}{hashlib.sha256(switch.lower().encode()).hexdigest()[:8]}"


def tap_name(mark: str, vm_id: str, nic_id: str) -> str:
    return f"hft{mark[:4]}{hashlib.sha256(f'{vm_id}/{nic_id}'.encode()).hexdigest()[:8]}"


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                raise NetworkNotPermitted(
                    "this daemon may not change the host's network",
                    cure="Run it as root, or use the user-mode network (no switch).",
                ) from error
            raise NetworkFailed(f"the kernel refused a change of the network: {error}") from error


def _index(ip: IPRoute, name: str) -> int | None:
    found = ip.link_lookup(ifname=name)
    return int(found[0]) if found else None


def used_networks() -> list[ipaddress.IPv4Network]:
    """Networks of the host's addresses and routes; the default route is none of them."""
    found = set()
    with _netlink() as ip:
        for address in ip.get_addr(family=socket.AF_INET):
            text = f"{address.get('address')}/{address['prefixlen']}"
            found.add(ipaddress.IPv4Network(text, strict=False))
        for route in ip.get_routes(family=socket.AF_INET, table=_MAIN_TABLE):
            if route["dst_len"]:
                found.add(ipaddress.IPv4Network(f"{route.get('dst')}/{route['dst_len']}", strict=False))
    return sorted(found)


def links(prefix: str) -> list[str]:
    with _netlink() as ip:
        names = (str(link.get("ifname")) for link in ip.get_links())
        return [name for name in names if name.startswith(prefix)]


def members(bridge: str) -> list[str]:
    """Names of the interfaces in a bridge."""
    with _netlink() as ip:
        index = _index(ip, bridge)
        if index is None:
            return []
        return [str(link.get("ifname")) for link in ip.get_links() if link.get("master") == index]


def ensure_bridge(name: str, gateway: ipaddress.IPv4Interface | None) -> bool:
    """Make a bridge with VLAN filtering, up, with the gateway's address; True where it was not there."""
    with _netlink() as ip:
        index = _index(ip, name)
        made = index is None
        if index is None:
            ip.link("add", ifname=name, kind="bridge", br_stp_state=0)
            index = _index(ip, name)
        _filter_vlans(ip, index)
        if gateway is None:
            _keep_host_off(name)
        if gateway is not None:
            present = {(a.get("address"), a["prefixlen"]) for a in ip.get_addr(index=index)}
            wanted = (str(gateway.ip), gateway.network.prefixlen)
            if wanted not in present:
                ip.addr("add", index=index, address=wanted[0], prefixlen=wanted[1])
        ip.link("set", index=index, state="up")
    return made


def _filter_vlans(ip: IPRoute, index: int | None) -> None:
    """Kernels without VLAN filtering still bridge; a port that wants a VLAN is refused by `join`."""
    try:
        ip.link("set", index=index, kind="bridge", br_vlan_filtering=1)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise


def _keep_host_off(bridge: str) -> None:
    """Without this the host would have an IPv6 link-local address on a switch that it is not on."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").write_text("1", encoding="ascii")


def _set_vlan(ip: IPRoute, index: int, vlan: int, tagged: bool) -> None:
    try:
        if tagged:
            ip.vlan_filter("add", index=index, vlan_info={"vid": vlan})
            return
        if vlan != _DEFAULT_VLAN:
            ip.vlan_filter("del", index=index, vlan_info={"vid": _DEFAULT_VLAN})
        ip.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": ["pvid", "untagged"]})
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise VlansUnsupported(
                f"the kernel cannot keep VLAN {vlan} apart",
                value=vlan,
                cure="Use a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or a switch for each network.",
            ) from error
        raise


def remove_link(name: str) -> None:
    with _netlink() as ip:
        index = _index(ip, name)
        if index is not None:
            ip.link("del", index=index)


def check_uplink(name: str, bridge: str) -> None:
    """Whether a physical interface may be joined to `bridge`.

    Only one that carries nothing of the host: moving addresses and routes over to the bridge could
    cut the host off from whoever manages it, so it is refused instead.

    Raises:
        InterfaceMissing: there is no such interface.
        InterfaceInUse: it has addresses or routes, or is in another bridge or bond.
    """
    with _netlink() as ip:
        index = _index(ip, name)
        if index is None:
            raise InterfaceMissing(
                f"this host has no interface {name[:32]!r}", value=name[:32], cure="See `ip link`."
            )
        link = ip.get_links(index)[0]
        why = ""
        if link.get("master") not in (None, _index(ip, bridge)):
            why = "is already part of a bridge or bond"
        elif any(route.get("oif") == index for route in ip.get_default_routes()):
            why = "carries the host's default route"
        elif any(True for _ in ip.get_addr(index=index, family=socket.AF_INET)):
            why = "has addresses of the host"
        elif name == "lo":
            why = "is the loopback interface"
    if why:
        raise InterfaceInUse(
            f"the interface {name} {why}",
            value=name,
            cure="Join one that the host does not use itself, or put a bridge of the host's own below it.",
        )


def join(bridge: str, name: str, vlan: int | None, *, tagged: bool = False) -> None:
    """Put an interface into a bridge, up. With `vlan`: untagged in that VLAN alone, or (an uplink)
    tagged in it besides what it has."""
    with _netlink() as ip:
        index, master = _index(ip, name), _index(ip, bridge)
        if index is None or master is None:
            raise NetworkFailed(f"{bridge if master is None else name} is gone", value=name)
        if ip.get_links(index)[0].get("master") != master:
            ip.link("set", index=index, master=master)
        if vlan is not None:
            _set_vlan(ip, index, vlan, tagged)
        ip.link("set", index=index, state="up")


def leave(name: str) -> None:
    """Take an interface out of its bridge and down; its VLANs there are forgotten with it."""
    with _netlink() as ip:
        index = _index(ip, name)
        if index is None:
            raise NetworkFailed(f"{name} is gone", value=name)
        ip.link("set", index=index, master=0, state="down")


def is_joined(bridge: str, name: str, vlan: int | None) -> bool:
    """Whether an interface is in a bridge, untagged in that VLAN alone (None: in the default one)."""
    with _netlink() as ip:
        index, master = _index(ip, name), _index(ip, bridge)
        if index is None or master is None or ip.get_links(index)[0].get("master") != master:
            return False
        vlans = _vlans(ip, index)
        return vlans in ({vlan or _DEFAULT_VLAN}, set() if vlan is None else {vlan})


def _vlans(ip: IPRoute, index: int) -> set[int]:
    """VLAN ids of a port; none where the kernel does not filter them."""
    found: set[int] = set()
    for link in ip.get_vlans(index=index):
        for kind, value in (link.get("af_spec") or {}).get("attrs", ()):
            if kind == "IFLA_BRIDGE_VLAN_INFO":
                found.add(int(value["vid"]))
    return found


def neighbours(bridge: str, mac: str) -> list[str]:
    """IPv4 addresses that the host has seen behind a MAC address on a bridge."""
    with _netlink() as ip:
        index = _index(ip, bridge)
        if index is None:
            return []
        found = ip.get_neighbours(family=socket.AF_INET, ifindex=index)
        return [str(entry.get("dst")) for entry in found if entry.get("lladdr") == mac]
