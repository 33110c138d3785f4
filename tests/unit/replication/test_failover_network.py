"""What is made of a VM's network over there: its specification, its seed, what is left to the agent."""

import pytest
import yaml
from pydantic import ValidationError

from holdfast.replication.failover_network import (
    SwitchMissing,
    failover_seed,
    mapped,
    require_nics,
    waiting,
)
from holdfast.spec.failover import FailoverNetwork, parse_failover_address
from holdfast.spec.vm import CloudInit, Nic, VmSpec
from holdfast.vm.nics import NicNotFound

ID = "0190aaaa-0000-7000-8000-000000000001"
SPEC = VmSpec(
    cpus=1,
    memory=1 << 30,
    cloud_init=CloudInit(user="ann", user_data="#!/bin/sh\nrm -rf /srv\n"),
    nics=(
        Nic(id="nic0", mac="52:54:00:00:00:01", switch="LAN", vlan=7),
        Nic(id="nic1", mac="52:54:00:00:00:02", switch="dmz"),
        Nic(id="nic2", mac="52:54:00:00:00:03"),
    ),
)
ADDRESS = parse_failover_address(
    "nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,gateway=2001:db8::1,dns=192.0.2.53"
)
OTHER = parse_failover_address("nic0=198.51.100.7/24,gateway=198.51.100.1")
NETWORK = FailoverNetwork(switches={"lan": "Office"}, addresses=(ADDRESS,))


def test_switches_get_the_names_that_they_have_over_there() -> None:
    there = mapped(SPEC, NETWORK, ["OFFICE", "DMZ"])
    assert [nic.switch for nic in there.nics] == ["OFFICE", "DMZ", None]
    assert there.nics[0].model_copy(update={"switch": "LAN"}) == SPEC.nics[0]
    assert there.model_copy(update={"nics": SPEC.nics}) == SPEC


def test_a_switch_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(SwitchMissing) as caught:
        mapped(SPEC, NETWORK, ["LAN", "dmz"])
    assert caught.value.value == "Office"
    assert "--map-switch" in (caught.value.cure or "")


def test_a_seed_of_a_new_instance_sets_addresses_and_nothing_else() -> None:
    files = failover_seed(ID, "web", SPEC, NETWORK, 5)
    assert files is not None
    read = {name: yaml.safe_load(text) for name, text in files.items()}
    assert set(read) == {"user-data", "meta-data", "network-config"}
    assert read["meta-data"] == {"instance-id": f"{ID}-failover-5"}
    assert files["user-data"].startswith("#cloud-config\n")
    said = read["user-data"]
    assert (said["users"], said["ssh_deletekeys"], said["preserve_hostname"]) == ([], False, True)
    ethernets = read["network-config"]["ethernets"]
    assert ethernets["nic0"] == {
        "match": {"macaddress": "52:54:00:00:00:01"},
        "dhcp4": False,
        "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
        "gateway4": "192.0.2.1",
        "gateway6": "2001:db8::1",
        "nameservers": {"addresses": ["192.0.2.53"]},
        "optional": True,
    }
    assert ethernets["nic1"]["dhcp4"] is True
    assert waiting(SPEC, NETWORK) == ()


def test_without_other_addresses_the_guest_finds_the_instance_that_it_knows() -> None:
    files = failover_seed(ID, "web", SPEC, FailoverNetwork(switches={"LAN": "LAN2"}), 5)
    assert files is not None
    assert yaml.safe_load(files["meta-data"])["instance-id"] == ID


def test_a_vm_without_a_seed_is_left_to_its_agent_and_gone_nics_to_nobody() -> None:
    plain = SPEC.model_copy(update={"cloud_init": None})
    gone = parse_failover_address("nic9=192.0.2.11/24")
    network = FailoverNetwork(addresses=(ADDRESS, gone))
    with pytest.raises(NicNotFound):
        require_nics(plain, network)
    assert failover_seed(ID, "web", plain, network, 5) is None
    assert waiting(plain, network) == ((SPEC.nics[0], ADDRESS),)


def test_a_nic_with_ipv6_alone_still_asks_for_ipv4() -> None:
    network = FailoverNetwork(addresses=(parse_failover_address("nic1=2001:db8::11/64"),))
    files = failover_seed(ID, "web", SPEC, network, 6)
    assert files is not None
    assert yaml.safe_load(files["network-config"])["ethernets"]["nic1"]["dhcp4"] is True


def test_on_the_way_back_nics_have_what_they_had_and_so_for_ever() -> None:
    here = NETWORK.back()
    assert here.switches == {"Office": "lan"}
    assert (here.addresses, here.home, here.own) == ((), (ADDRESS,), ("nic0",))
    assert here.back() == NETWORK
    both = NETWORK.model_copy(update={"home": (OTHER,)})
    assert both.back().addresses == (OTHER,)
    assert both.back().own == ()
    assert both.back().back() == both


def test_what_nics_have_here_stays_where_only_what_they_have_there_is_changed() -> None:
    here = NETWORK.back()
    changed = here.changed_to(FailoverNetwork(addresses=(OTHER,)))
    assert (changed.addresses, changed.home, changed.own) == ((OTHER,), (ADDRESS,), ())
    assert here.changed_to(FailoverNetwork(home=())).home == ()


def test_what_a_failover_set_through_the_agent_is_taken_away_on_the_way_back() -> None:
    plain = SPEC.model_copy(update={"cloud_init": None})
    assert waiting(plain, NETWORK.back()) == ((SPEC.nics[0], None),)
    assert waiting(SPEC, NETWORK.back()) == ()
    files = failover_seed(ID, "web", SPEC, NETWORK.back(), 5)
    assert files is not None and yaml.safe_load(files["meta-data"])["instance-id"] == ID


def test_a_nic_has_its_own_addresses_or_others() -> None:
    with pytest.raises(ValidationError, match="and its own"):
        FailoverNetwork(addresses=(ADDRESS,), own=("nic0",))
