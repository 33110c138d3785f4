"""`holdfast replica`: what each command asks for and prints."""

import json
from pathlib import Path
from typing import Any

from command_line import run

from holdfast.spec.failover import FailoverNetwork, parse_failover_address
from holdfast.spec.replica import PeerAdd, ReplicaAccept, ReplicaEnable

TOKEN = "hfr_" + "a" * 43 + "." + "0" * 64
FIXED = {
    *("vm", "peer", "state", "health", "rpo_seconds", "rpo_p50_seconds", "rpo_p99_seconds"),
    *("lag_bytes", "full_copies", "points"),
}


def test_a_token_is_printed_alone_with_the_limits_that_were_asked_for(daemon: Any) -> None:
    done = run(daemon, "replica", "accept", "--vms", "3", "--space", "1GiB")
    assert (done.returncode, done.stdout) == (0, TOKEN + "\n")
    asked = daemon.peers.asked[-1]
    assert isinstance(asked, ReplicaAccept)
    assert (asked.limits.vms, asked.limits.space) == (3, 1 << 30)


def test_a_peers_token_comes_from_a_file_or_standard_input(daemon: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    url = "https://[2001:db8::7]:8444"
    assert run(daemon, "replica", "peer", "add", "south", url, "--token-file", str(file)).returncode == 0
    assert run(daemon, "replica", "peer", "add", "south", url, typed=TOKEN + "\n").returncode == 0
    assert daemon.peers.asked[-2:] == [PeerAdd(name="south", address=url, token=TOKEN)] * 2


def test_enabling_asks_for_what_was_said(daemon: Any) -> None:
    done = run(
        daemon, "replica", "enable", "web", "--to", "south", "--rpo", "15m", "--priority", "low",
        "--limit", "200Mbit/s", "--exclude", "disk1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = ReplicaEnable.model_validate(
        {"peer": "south", "rpo_seconds": 900, "priority": "low", "limit": "200Mbit/s", "exclude": ["disk1"]}
    )
    assert daemon.replications.asked[-1] == wanted
    assert run(daemon, "replica", "enable", "web", "--to", "south", "--rpo", "soon").returncode != 0


def test_the_network_over_there_is_said_in_words(daemon: Any) -> None:
    address = "nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,dns=192.0.2.53"
    enable = ("replica", "enable", "web", "--to", "south")
    done = run(daemon, *enable, "--map-switch", "LAN=LAN2", "--failover-address", address)
    assert done.returncode == 0, done.stderr
    asked = daemon.replications.asked[-1].failover
    assert asked == FailoverNetwork(switches={"LAN": "LAN2"}, addresses=(parse_failover_address(address),))
    for option, text in (("--map-switch", "LAN"), ("--failover-address", "nic0=192.0.2.10")):
        assert run(daemon, *enable, option, text).returncode == 2


def test_the_status_has_the_fields_that_checkers_count_on(daemon: Any) -> None:
    run(daemon, "replica", "enable", "web", "--to", "south")
    one = json.loads(run(daemon, "replica", "status", "web", "--format", "json").stdout)
    every = json.loads(run(daemon, "replica", "status", "--format", "json").stdout)
    assert every == one
    assert set(one[0]) >= FIXED
    told = run(daemon, "replica", "status")
    assert "replicating" in told.stdout
    assert "web: It is late." in told.stderr
    assert run(daemon, "replica", "disable", "web", "--to", "south").returncode == 0
    assert daemon.replications.asked[-1] == "south"
    assert json.loads(run(daemon, "replica", "status", "--format", "json").stdout) == []


def test_peers_and_replicas_are_listed_and_removed(daemon: Any) -> None:
    assert "north" in run(daemon, "replica", "peer", "list").stdout
    assert "web" in run(daemon, "replica", "list").stdout
    assert run(daemon, "replica", "peer", "remove", "north").returncode == 0
    assert run(daemon, "replica", "remove", "web").returncode == 0
    assert (daemon.peers.asked[-1], daemon.held.removed) == ("north", ["web"])
