"""A VM's network after a failover, as people write it."""

import pytest

from holdfast.spec.failover import (
    BadFailoverAddress,
    BadSwitchMap,
    FailoverNetwork,
    parse_failover_address,
    parse_switch_map,
)


def test_both_families_with_gateways_and_servers_are_read_and_written_again() -> None:
    text = (
        "nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,gateway=fe80::1,dns=192.0.2.53,dns=2001:db8::53"
    )
    found = parse_failover_address(text)
    assert found.nic == "nic0"
    assert [str(each) for each in found.addresses] == ["192.0.2.10/24", "2001:db8::10/64"]
    assert [str(each) for each in found.gateways] == ["192.0.2.1", "fe80::1"]
    assert [str(each) for each in found.dns] == ["192.0.2.53", "2001:db8::53"]
    network = FailoverNetwork(switches={"LAN": "LAN2"}, addresses=(found,))
    assert FailoverNetwork.model_validate_json(network.model_dump_json()) == network


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.10/24", "NIC"),
        ("nic0=192.0.2.10", "prefix"),
        ("nic0=192.0.2.10/33", "192.0.2.10/33"),
        ("nic0=192.0.2.10/0", "prefix"),
        ("nic0=224.0.0.1/24", "cannot be the address"),
        ("nic0=::1/64", "cannot be the address"),
        ("nic0=fe80::1%eth0/64", "names an interface"),
        ("nic0=2001:db8::1/64,gateway=fe80::1%a\nb", "names an interface"),
        ("nic0=192.0.2.10/24,gateway=198.51.100.1", "network of no address"),
        ("nic0=192.0.2.10/24,gateway=192.0.2.10", "network of no address"),
        ("nic0=192.0.2.10/24,gateway=2001:db8::1", "network of no address"),
        ("nic0=192.0.2.10/24,gateway=192.0.2.1,gateway=192.0.2.2", "more than one gateway"),
        ("nic0=192.0.2.10/24,192.0.2.10/24", "twice"),
        ("nic0=192.0.2.10/24,mtu=9000", "neither"),
        ("nic0=gateway=192.0.2.1", "addresses|at least"),
        ("nic 0=192.0.2.10/24", "pattern"),
        ("nic0=192.0.2.10/24" + ",dns=192.0.2.53" * 100, "NIC"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadFailoverAddress, match=reason):
        parse_failover_address(text)


def test_a_switch_is_found_whatever_its_case_and_others_keep_their_names() -> None:
    network = FailoverNetwork(switches=dict([parse_switch_map("LAN = LAN2")]))
    assert (network.switch("lan"), network.switch("DMZ")) == ("LAN2", "DMZ")
    for text in ("LAN", "LAN=", "=LAN2", "../x=y"):
        with pytest.raises(BadSwitchMap):
            parse_switch_map(text)


def test_what_is_said_twice_is_refused() -> None:
    one = parse_failover_address("nic0=192.0.2.10/24")
    for wrong in ({"addresses": (one, one)}, {"switches": {"LAN": "A", "lan": "B"}}):
        with pytest.raises(ValueError, match="twice"):
            FailoverNetwork.model_validate(wrong)
