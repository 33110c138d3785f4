"""The network of a VM on the host that it fails over to: other names of switches, other addresses.

What people write of it is parsed here:

    LAN=LAN2                                                    `LAN` is called `LAN2` over there
    nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,dns=192.0.2.53
"""

import ipaddress
from typing import Annotated, Self

from pydantic import Field, model_validator

from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NicId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,30}$")]

_MOST = 16


class BadFailoverAddress(InvalidInput):
    id = "bad-failover-address"


class BadSwitchMap(InvalidInput):
    id = "bad-switch-map"


class FailoverAddress(Frozen):
    """What a NIC is to have in the guest after a failover. IPv4 and IPv6 alike."""

    nic: NicId
    addresses: tuple[Interface, ...] = Field(min_length=1, max_length=_MOST)
    """With the length of their prefix."""
    gateways: tuple[Address, ...] = Field(default=(), max_length=2)
    """One of each family at most; of a family that has an address."""
    dns: tuple[Address, ...] = Field(default=(), max_length=_MOST)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for every in (*self.addresses, *self.gateways, *self.dns):
            if getattr(every, "scope_id", None) is not None:  # it may hold any text
                raise ValueError(f"{str(every)[:50]!r} names an interface")
        for each in self.addresses:
            ip = each.ip
            if ip.is_multicast or ip.is_unspecified or ip.is_loopback:
                raise ValueError(f"{ip} cannot be the address of a NIC")
            if each.network.prefixlen == 0:
                raise ValueError(f"{ip} needs the length of its prefix, such as {ip}/24")
        if len(set(self.addresses)) < len(self.addresses):
            raise ValueError("an address is given twice")
        versions = [each.version for each in self.gateways]
        if len(set(versions)) < len(versions):
            raise ValueError("more than one gateway of a family")
        for gateway in self.gateways:
            if not any(_reaches(each, gateway) for each in self.addresses):
                raise ValueError(f"the gateway {gateway} is in the network of no address")
        return self


def _reaches(address: Interface, gateway: Address) -> bool:
    if address.version != gateway.version:
        return False
    return gateway.is_link_local or (gateway in address.network and gateway != address.ip)


class FailoverNetwork(Frozen):
    switches: dict[Name, Name] = Field(default={}, max_length=256)
    """What a switch of this host is called over there; others have the same name there."""
    addresses: tuple[FailoverAddress, ...] = Field(default=(), max_length=64)
    """Of NICs that get others; those not named here ask by DHCP, or keep what the guest has."""
    home: tuple[FailoverAddress, ...] = Field(default=(), max_length=64)
    """What NICs have on this host since a failover gave it to them; on the way back they get it again."""
    own: tuple[NicId, ...] = Field(default=(), max_length=64)
    """NICs that have over there what their guest was set up for; what a failover gave them is taken away."""

    @model_validator(mode="after")
    def _single(self) -> Self:
        for nics in ([each.nic for each in self.addresses], [each.nic for each in self.home], self.own):
            if len(set(nics)) < len(nics):
                raise ValueError("a NIC is given addresses twice")
        if {each.nic for each in self.addresses} & set(self.own):
            raise ValueError("a NIC is given addresses, and its own")
        if len({each.lower() for each in self.switches}) < len(self.switches):
            raise ValueError("a switch is mapped twice")
        return self

    def switch(self, name: str) -> str:
        """What the switch is called over there."""
        found = {each.lower(): other for each, other in self.switches.items()}
        return found.get(name.lower(), name)

    def back(self) -> "FailoverNetwork":
        """The network on the way back, from there to here.

        Of switches that are one over there, the last one is taken.
        """
        known = {each.nic for each in self.home}
        return FailoverNetwork(
            switches=dict({there.lower(): (there, here) for here, there in self.switches.items()}.values()),
            addresses=self.home,
            home=self.addresses,
            own=tuple(each.nic for each in self.addresses if each.nic not in known),
        )

    def changed_to(self, wanted: "FailoverNetwork") -> "FailoverNetwork":
        """What is wanted over there; what NICs have here stays as it is, unless that was said, too."""
        if "home" in wanted.model_fields_set:
            return wanted
        return wanted.model_copy(update={"home": self.home})

    def of_nic(self, nic: str) -> FailoverAddress | None:
        return next((each for each in self.addresses if each.nic == nic), None)


def parse_switch_map(text: str) -> tuple[str, str]:
    """`LAN=LAN2`: here and over there. Raises BadSwitchMap."""
    here, sign, there = (part.strip() for part in text.partition("="))
    try:
        if not sign:
            raise ValueError
        FailoverNetwork(switches={here: there})
    except ValueError as error:
        raise BadSwitchMap(
            f"{text[:100]!r} does not say what a switch is called over there",
            value=text[:200],
            cure="Write the name here and the name there, for example LAN=LAN2",
        ) from error
    return here, there


def parse_failover_address(text: str) -> FailoverAddress:
    """`nic0=ADDRESS/PREFIX[,ADDRESS/PREFIX...][,gateway=ADDRESS...][,dns=ADDRESS...]`.

    Raises BadFailoverAddress.
    """
    nic, sign, rest = text.strip().partition("=")
    found: dict[str, list[Interface | Address]] = {"": [], "gateway": [], "dns": []}
    try:
        if not sign or text.count(",") > 3 * _MOST:
            raise ValueError("it does not begin with the NIC, as in nic0=192.0.2.10/24")
        for part in rest.split(","):
            key, given, value = part.strip().rpartition("=")
            if key not in found or bool(given) != bool(key):
                raise ValueError(f"{part[:40]!r} is neither an address, a gateway nor a DNS server")
            parsed = ipaddress.ip_address(value) if key else _interface(value)
            found[key].append(parsed)
        made = {"addresses": found[""], "gateways": found["gateway"], "dns": found["dns"]}
        return FailoverAddress.model_validate({"nic": nic.strip(), **made})
    except ValueError as error:
        raise BadFailoverAddress(
            f"{text[:100]!r} is no address for a failover: {_reason(error)}",
            value=text[:200],
            cure="Write for example nic0=192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53",
        ) from error


def _interface(text: str) -> Interface:
    if "/" not in text:
        raise ValueError(f"{text[:50]!r} needs the length of its prefix, such as 192.0.2.10/24")
    return ipaddress.ip_interface(text)


def _reason(error: ValueError) -> str:
    """pydantic's words are for programs; of them what the check said."""
    found = getattr(error, "errors", None)
    if found is None:
        return str(error)[:200]
    return str(found(include_url=False)[0]["msg"]).removeprefix("Value error, ")[:200]
