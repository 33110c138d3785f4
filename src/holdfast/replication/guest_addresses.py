"""Setting a guest's addresses after a failover through its agent, for guests without a cloud-init seed.

One shell script a NIC, run by the agent's `guest-exec`. It finds the interface by its MAC address, then who
keeps the guest's network, and tells that one, so that the addresses stay over a restart:

    NetworkManager (nmcli)   a profile of its own               nmcli(1)
    netplan                  /etc/netplan/90-holdfast-*.yaml    netplan documentation, "YAML configuration"
    systemd-networkd         /etc/systemd/network/10-holdfast-* systemd.network(5)
    nobody of these          ip(8); lost when the guest restarts, which is said

What a guest answers is untrusted: bounded, shown, never acted on.
"""

import json
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum

from holdfast.spec.errors import HoldfastError
from holdfast.spec.failover import FailoverAddress
from holdfast.spec.model import Frozen
from holdfast.spec.vm import GuestOs, Nic
from holdfast.spec.vm_requests import ExecRequest, ExecResult

Execute = Callable[[ExecRequest], Awaitable[ExecResult]]

_SECONDS = 60.0
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SAID = re.compile(r"^holdfast-set ([a-z]+) ([A-Za-z0-9._-]{1,15})$", re.MULTILINE | re.ASCII)


class Means(StrEnum):
    NETWORK_MANAGER = "networkmanager"
    NETPLAN = "netplan"
    NETWORKD = "networkd"
    IP = "ip"
    """Until the guest restarts."""


class AddressSet(Frozen):
    """What became of one NIC's addresses."""

    nic: str
    addresses: tuple[str, ...]
    """Empty: those that the guest was set up for."""
    done: bool
    means: Means | None = None
    """By which they are set; None: they are not."""
    lasting: bool = False
    """They are the same after a restart of the guest."""
    why: str = ""
    """Why they are not set."""


async def set_addresses(
    execute: Execute, guest: GuestOs, wanted: Sequence[tuple[Nic, FailoverAddress | None]]
) -> tuple[AddressSet, ...]:
    """Set the addresses of NICs, one after another. Never raises: what failed is in the result.

    Args:
        execute: runs a program in the guest, such as `GuestWatch.execute`; may raise a HoldfastError.
        wanted: as `failover_network.waiting` gives it.
    """
    return tuple([await _set(execute, guest, nic, address) for nic, address in wanted])


async def _set(execute: Execute, guest: GuestOs, nic: Nic, address: FailoverAddress | None) -> AddressSet:
    def failed(why: str) -> AddressSet:
        text = "".join(each if each.isprintable() else " " for each in why)[:300].strip()
        return AddressSet(nic=nic.id, addresses=texts, done=False, why=text)

    texts = tuple(str(each) for each in address.addresses) if address else ()
    if guest is not GuestOs.LINUX:
        return failed(f"addresses cannot be set in a guest of {guest}")
    if not _MAC.fullmatch(nic.mac):
        return failed(f"{nic.mac} is no MAC address")
    script = script_for(nic, address) if address else taking_away(nic)
    try:
        done = await execute(ExecRequest(argv=("/bin/sh",), stdin=script, timeout_seconds=_SECONDS))
    except HoldfastError as error:
        return failed(error.message)
    said = _SAID.search(done.stdout)
    if done.exit_code != 0 or said is None or said[1] not in list(Means):
        words = done.stderr.strip() or done.stdout.strip() or "it said nothing"
        return failed(f"the script ended with {done.exit_code}: {words}")
    means = Means(said[1])
    lasting = means is not Means.IP or address is None
    return AddressSet(nic=nic.id, addresses=texts, done=True, means=means, lasting=lasting)


def script_for(nic: Nic, address: FailoverAddress) -> str:
    """The script for one NIC (POSIX shell), whose MAC address is one."""
    values = {
        "MAC": nic.mac,
        "NAME": f"holdfast-{nic.id}",
        "V4": _texts(address, 4),
        "V6": _texts(address, 6),
        "GATE4": _gateway(address, 4),
        "GATE6": _gateway(address, 6),
        "DNS4": " ".join(str(each) for each in address.dns if each.version == 4),
        "DNS6": " ".join(str(each) for each in address.dns if each.version == 6),
        "NETPLAN": _netplan(nic, address),
        "NETWORKD": _networkd(nic, address),
    }
    head = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    return head + _BEGIN + _SET


def taking_away(nic: Nic) -> str:
    """The script by which a NIC has what its guest was set up for, and nothing that `script_for` set."""
    head = f"MAC={shlex.quote(nic.mac)}\nNAME={shlex.quote(f'holdfast-{nic.id}')}\n"
    return head + _BEGIN + _TAKE_AWAY


def _texts(address: FailoverAddress, version: int) -> str:
    return " ".join(str(each) for each in address.addresses if each.version == version)


def _gateway(address: FailoverAddress, version: int) -> str:
    return next((str(each) for each in address.gateways if each.version == version), "")


def _netplan(nic: Nic, address: FailoverAddress) -> str:
    """JSON is YAML."""
    everywhere = {4: "0.0.0.0/0", 6: "::/0"}
    ethernet = {
        "match": {"macaddress": nic.mac},
        "dhcp4": not _texts(address, 4),
        "addresses": [str(each) for each in address.addresses],
        "routes": [{"to": everywhere[each.version], "via": str(each)} for each in address.gateways],
        "nameservers": {"addresses": [str(each) for each in address.dns]},
    }
    ethernets = {f"holdfast-{nic.id}": {each: value for each, value in ethernet.items() if value != []}}
    return json.dumps({"network": {"version": 2, "ethernets": ethernets}})


def _networkd(nic: Nic, address: FailoverAddress) -> str:
    dhcp = "no" if _texts(address, 4) else "ipv4"
    lines = ["[Match]", f"MACAddress={nic.mac}", "", "[Network]", f"DHCP={dhcp}"]
    lines += [f"Address={each}" for each in address.addresses]
    lines += [f"Gateway={each}" for each in address.gateways]
    lines += [f"DNS={each}" for each in address.dns]
    return "\n".join(lines)


# ROOT is empty but where the script is tested.
_BEGIN = r"""
set -u
umask 077
ROOT=${HOLDFAST_ROOT-}
dev=
for each in /sys/class/net/*; do
    [ "$(cat "$each/address" 2>/dev/null)" = "$MAC" ] && [ -e "$each" ] && dev=${each##*/} && break
done
[ -n "$dev" ] || { echo "no interface has the address $MAC" >&2; exit 3; }
have() { command -v "$1" >/dev/null 2>&1; }
active() { have systemctl && systemctl is-active --quiet "$1"; }
done_by() { echo "holdfast-set $1 $dev"; exit 0; }
put() { mkdir -p "${1%/*}" && printf '%s\n' "$2" > "$1.new" && mv "$1.new" "$1"; }
CONF="$ROOT/etc/resolv.conf" MARK="# set after a failover"
ours() { [ "$(head -n 1 "$CONF" 2>/dev/null)" = "$MARK" ]; }
managed() { have nmcli && nmcli -t -f RUNNING general 2>/dev/null | grep -q '^running'; }
"""
_SET = r"""
list() { echo "$*" | tr ' ' ','; }
if managed; then
    nmcli connection delete "$NAME" >/dev/null 2>&1
    set -- connection.autoconnect-priority 999
    [ -z "$V4" ] || set -- "$@" ipv4.method manual ipv4.addresses "$(list $V4)" ipv4.gateway "$GATE4" \
        ipv4.dns "$(list $DNS4)"
    [ -z "$V6" ] || set -- "$@" ipv6.method manual ipv6.addresses "$(list $V6)" ipv6.gateway "$GATE6" \
        ipv6.dns "$(list $DNS6)"
    nmcli connection add type ethernet con-name "$NAME" ifname "$dev" "$@" >/dev/null || exit 4
    nmcli connection up "$NAME" >/dev/null || exit 4
    done_by networkmanager
fi
if have netplan && ls "$ROOT"/etc/netplan/*.yaml >/dev/null 2>&1; then
    put "$ROOT/etc/netplan/90-$NAME.yaml" "$NETPLAN" && netplan apply || exit 4
    done_by netplan
fi
if active systemd-networkd; then
    # Readable by networkd, which does not run as root.
    put "$ROOT/etc/systemd/network/10-$NAME.network" "$NETWORKD" || exit 4
    chmod 644 "$ROOT/etc/systemd/network/10-$NAME.network"
    networkctl reload && networkctl reconfigure "$dev" || exit 4
    done_by networkd
fi
have ip || { echo "nothing here sets addresses" >&2; exit 5; }
if [ -n "$V4" ]; then
    # One that asks by DHCP on this interface would set what it is told again.
    for each in /proc/[0-9]*; do
        set -- $(tr '\0' ' ' 2>/dev/null < "$each/cmdline")
        case "${1-}" in *udhcpc|*dhclient|*dhcpcd) ;; *) continue ;; esac
        case " $* " in *" $dev "*) kill "${each##*/}" 2>/dev/null ;; esac
    done
fi
ip link set "$dev" up || exit 4
[ -z "$V4" ] || ip -4 addr flush dev "$dev" scope global
[ -z "$V6" ] || ip -6 addr flush dev "$dev" scope global
for each in $V4 $V6; do ip addr add "$each" dev "$dev" || exit 4; done
if [ -n "$GATE4" ]; then
    ip route del default dev "$dev" 2>/dev/null
    ip route add default via "$GATE4" dev "$dev" || exit 4
fi
if [ -n "$GATE6" ]; then
    ip -6 route del default dev "$dev" 2>/dev/null
    ip -6 route add default via "$GATE6" dev "$dev" || exit 4
fi
if [ -n "$DNS4$DNS6" ] && [ ! -L "$CONF" ]; then
    ours || [ ! -e "$CONF" ] || cp -p "$CONF" "$CONF.holdfast"
    { echo "$MARK"; for each in $DNS4 $DNS6; do echo "nameserver $each"; done; } > "$CONF.new"
    chmod 644 "$CONF.new"
    mv "$CONF.new" "$CONF"
fi
done_by ip
"""
# Addresses that were set by `ip` went when the guest started anew.
_TAKE_AWAY = r"""
if managed; then
    if nmcli connection delete "$NAME" >/dev/null 2>&1; then
        nmcli device connect "$dev" >/dev/null || exit 4
    fi
    done_by networkmanager
fi
file="$ROOT/etc/netplan/90-$NAME.yaml"
if have netplan && [ -e "$file" ]; then
    rm -f "$file" && netplan apply || exit 4
    done_by netplan
fi
file="$ROOT/etc/systemd/network/10-$NAME.network"
if active systemd-networkd && [ -e "$file" ]; then
    rm -f "$file" && networkctl reload && networkctl reconfigure "$dev" || exit 4
    done_by networkd
fi
if ours && [ -e "$CONF.holdfast" ]; then
    mv "$CONF.holdfast" "$CONF" || exit 4
fi
done_by ip
"""
