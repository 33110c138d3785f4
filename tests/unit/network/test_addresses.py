"""MAC addresses and subnets: free ones are found, bad ones refused."""

import ipaddress

import pytest

from holdfast.network.addresses import (
    BadSubnet,
    NoFreeSubnet,
    SubnetInUse,
    check_subnet,
    free_subnet,
    new_mac,
)
from holdfast.network.links import bridge_name, tap_name
from holdfast.network.nat import rules


def test_macs_are_unicast_and_locally_administered() -> None:
    macs = {new_mac() for _ in range(500)}
    assert len(macs) == 500
    assert all(int(mac[:2], 16) & 3 == 2 and len(mac) == 17 for mac in macs)


@pytest.mark.parametrize("text", ["8.8.8.0/24", "10.0.0.0/31", "10.0.0.1/24", "fd00::/64", "x", "10.0.0.0/8"])
def test_bad_subnets_are_refused(text: str) -> None:
    with pytest.raises(BadSubnet):
        check_subnet(text, [])


def test_an_overlap_is_refused() -> None:
    with pytest.raises(SubnetInUse):
        check_subnet("10.1.2.0/24", [ipaddress.IPv4Network("10.1.0.0/16")])
    assert str(check_subnet("10.1.2.0/24", [ipaddress.IPv4Network("10.2.0.0/16")])) == "10.1.2.0/24"


def test_the_only_free_subnet_is_found() -> None:
    whole = ipaddress.IPv4Network("10.0.0.0/8")
    left = ipaddress.IPv4Network("10.7.8.0/24")
    assert free_subnet(whole.address_exclude(left)) == left
    with pytest.raises(NoFreeSubnet):
        free_subnet([whole])


def test_interface_names_fit_the_kernel_and_ignore_case() -> None:
    assert len(bridge_name("0123456789abcdef", "x" * 63)) == 15
    assert len(tap_name("0123456789abcdef", "id", "nic0")) == 15
    assert bridge_name("0123", "Lab") == bridge_name("0123", "lab")
    assert bridge_name("0123", "lab") != bridge_name("4567", "lab")


def test_rules_replace_the_table_whole() -> None:
    text = rules("holdfast_t", "hfb1", "10.1.2.0/24")
    assert text.index("delete table inet holdfast_t") < text.index("masquerade")
