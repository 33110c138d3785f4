"""MAC addresses for VMs and free subnets for switches. Pure; the callers own all records."""

import ipaddress
import secrets
from collections.abc import Iterable

from holdfast.spec.errors import Conflict, Insufficient, InvalidInput

_POOL = ipaddress.IPv4Network("10.0.0.0/8")
_SMALLEST = 29
_LARGEST = 16
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


class BadSubnet(InvalidInput):
    id = "bad-subnet"


class SubnetInUse(Conflict):
    id = "subnet-in-use"


class NoFreeSubnet(Insufficient):
    id = "no-free-subnet"


def new_mac() -> str:
    """A random unicast, locally administered address (IEEE 802, section 8.2); the caller checks that
    no other VM has it."""
    first = (secrets.randbits(8) & 0xFC) | 0x02
    return ":".join(f"{octet:02x}" for octet in (first, *secrets.token_bytes(5)))


def check_subnet(text: str, taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """The network that `text` (CIDR) names, if a switch may have it.

    Raises:
        BadSubnet: not IPv4, not private (RFC 1918), host bits set, or not /16 to /29.
        SubnetInUse: it overlaps one of `taken`.
    """
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise BadSubnet(
            f"{text[:64]!r} is no IPv4 network: {error}",
            value=text[:64],
            cure="Give a network such as 10.20.30.0/24.",
        ) from error
    if not any(network.subnet_of(private) for private in _PRIVATE):
        raise BadSubnet(
            f"{network} is not a private network",
            value=text,
            cure="Use a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16 (RFC 1918).",
        )
    if not _LARGEST <= network.prefixlen <= _SMALLEST:
        raise BadSubnet(
            f"{network} has a prefix of {network.prefixlen}; /{_LARGEST} to /{_SMALLEST} are possible",
            value=text,
            cure="Use a /24 unless you know that it is too small.",
        )
    for other in taken:
        if other.overlaps(network):
            raise SubnetInUse(
                f"{network} overlaps {other}, which this host already uses",
                value=text,
                cure="Choose another subnet, or leave it out to have a free one chosen.",
                detail={"overlaps": str(other)},
            )
    return network


def free_subnet(taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """A /24 of 10.0.0.0/8 that overlaps none of `taken`, from a random beginning.

    Raises:
        NoFreeSubnet: all are taken.
    """
    used = tuple(taken)
    count = 2 ** (24 - _POOL.prefixlen)
    begin = secrets.randbelow(count)
    for step in range(count):
        offset = ((begin + step) % count) * 256
        network = ipaddress.IPv4Network((int(_POOL.network_address) + offset, 24))
        if not any(network.overlaps(other) for other in used):
            return network
    raise NoFreeSubnet("no free /24 is left in 10.0.0.0/8", cure="Give the switch a subnet yourself.")
