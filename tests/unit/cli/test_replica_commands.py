"""`holdfast replica`: what each command asks for and prints."""

import json
import os
import pty
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import RUN, env, run

from holdfast.spec.failover import FailoverNetwork, parse_failover_address
from holdfast.spec.replica import PeerAdd, ReplicaAccept, ReplicaEnable, ReplicaExtend, ReplicaSender

TOKEN = "hfr_" + "a" * 43 + "." + "0" * 64
FIXED = {
    *("vm", "peer", "state", "health", "rpo_seconds", "rpo_p50_seconds", "rpo_p99_seconds"),
    *("lag_bytes", "full_copies", "points"),
}


def test_a_token_is_printed_alone_with_the_limits_that_were_asked_for(daemon: Any) -> None:
    done = run(daemon, "replica", "accept", "--vms", "3", "--space", "1GiB")
    assert (done.returncode, done.stdout) == (0, TOKEN + "\n")
    asked = daemon.replicas.peers.asked[-1]
    assert isinstance(asked, ReplicaAccept)
    assert (asked.limits.vms, asked.limits.space) == (3, 1 << 30)


def test_a_peers_token_comes_from_a_file_or_standard_input(daemon: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    url = "https://[2001:db8::7]:8444"
    assert run(daemon, "replica", "peer", "add", "south", url, "--token-file", str(file)).returncode == 0
    assert run(daemon, "replica", "peer", "add", "south", url, typed=TOKEN + "\n").returncode == 0
    assert daemon.replicas.peers.asked[-2:] == [PeerAdd(name="south", address=url, token=TOKEN)] * 2


def test_enabling_asks_for_what_was_said(daemon: Any) -> None:
    done = run(
        daemon, "replica", "enable", "web", "--to", "south", "--rpo", "15m", "--priority", "low",
        "--limit", "200Mbit/s", "--exclude", "disk1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = ReplicaEnable.model_validate(
        {"peer": "south", "rpo_seconds": 900, "priority": "low", "limit": "200Mbit/s", "exclude": ["disk1"]}
    )
    assert daemon.replicas.sent.asked[-1] == wanted
    assert run(daemon, "replica", "enable", "web", "--to", "south", "--rpo", "soon").returncode != 0


def test_a_replica_is_sent_on_as_it_is_said_and_shown_as_such(daemon: Any) -> None:
    done = run(
        daemon, "replica", "extend", "web", "--to", "west", "--rpo", "1m", "--limit", "50Mbit/s",
        "--map-switch", "LAN=LAN2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sent on to 'west'" in done.stderr
    asked = daemon.replicas.sent.asked[-1]
    assert isinstance(asked, ReplicaExtend)
    assert (asked.peer, asked.rpo_seconds, asked.failover.switches) == ("west", 60.0, {"LAN": "LAN2"})
    done = run(daemon, "replica", "extend", "web", "--to", "west", "--format", "json")
    assert json.loads(done.stdout)["sent_on"] is True
    assert daemon.replicas.sent.asked[-1].rpo_seconds == 15.0
    assert "web (sent on)" in run(daemon, "replica", "status").stdout
    assert run(daemon, "replica", "disable", "web", "--to", "west").returncode == 0


def test_the_network_over_there_is_said_in_words(daemon: Any) -> None:
    address = "nic0=192.0.2.10/24,2001:db8::10/64,gateway=192.0.2.1,dns=192.0.2.53"
    enable = ("replica", "enable", "web", "--to", "south")
    done = run(daemon, *enable, "--map-switch", "LAN=LAN2", "--failover-address", address)
    assert done.returncode == 0, done.stderr
    asked = daemon.replicas.sent.asked[-1].failover
    assert asked == FailoverNetwork(switches={"LAN": "LAN2"}, addresses=(parse_failover_address(address),))
    for option, text in (("--map-switch", "LAN"), ("--failover-address", "nic0=192.0.2.10")):
        assert run(daemon, *enable, option, text).returncode == 2


def test_only_what_is_said_is_changed(daemon: Any) -> None:
    times = ("--schedule", "22:00-06:00", "--initial", "at 22:00", "--app-consistent", "every=1h")
    run(daemon, "replica", "enable", "web", "--to", "south", *times)
    asked = daemon.replicas.sent.asked[-1]
    assert (asked.schedule, asked.initial, asked.consistent_seconds) == ("22:00-06:00", "at 22:00", 3600)
    done = run(daemon, "replica", "set", "web", "--to", "south", "--rpo", "15m", "--exclude", "none")
    assert done.returncode == 0, done.stderr
    change, peer = daemon.replicas.sent.asked[-1]
    assert (change.model_dump(exclude_unset=True), peer) == ({"rpo_seconds": 900.0, "exclude": ()}, "south")
    assert run(daemon, "replica", "set", "web").returncode == 2
    for verb, paused in (("pause", True), ("resume", False)):
        assert run(daemon, "replica", verb, "web").returncode == 0
        assert daemon.replicas.sent.asked[-1] == (paused, None)


def test_the_status_has_the_fields_that_checkers_count_on(daemon: Any) -> None:
    run(daemon, "replica", "enable", "web", "--to", "south")
    one = json.loads(run(daemon, "replica", "status", "web", "--format", "json").stdout)
    every = json.loads(run(daemon, "replica", "status", "--format", "json").stdout)
    assert every == one
    assert set(one[0]) >= FIXED
    told = run(daemon, "replica", "status")
    assert "replicating" in told.stdout
    assert "web: It is late." in told.stdout
    assert "web: copying 3 MiB of 12 MiB (25%), 1 MiB/s, 9.0 s left" in told.stdout
    assert run(daemon, "replica", "disable", "web", "--to", "south").returncode == 0
    assert daemon.replicas.sent.asked[-1] == "south"
    assert json.loads(run(daemon, "replica", "status", "--format", "json").stdout) == []


def test_an_explanation_says_what_where_since_when_and_what_to_do(daemon: Any) -> None:
    done = run(daemon, "replica", "explain", "web")
    assert done.returncode == 0, done.stderr
    for wanted in (
        "nobody listens for replicas",
        "where: replica; critical; since 2030-",
        "do:    Start its daemon.",
        "(replica-nobody-listens)",
        "3 tries failed.",
        "1 min 15 s",
        "2 KiB/s",
    ):
        assert wanted in done.stdout, done.stdout
    assert "\x1b" not in done.stdout
    (found,) = json.loads(run(daemon, "replica", "explain", "web", "--format", "json").stdout)
    assert (found["vm"], found["causes"][0]["side"]) == ("web", "replica")


def test_a_plan_is_asked_for_by_rpo_or_bandwidth(daemon: Any) -> None:
    done = run(daemon, "replica", "plan", "web", "--rpo", "5s", "--bandwidth", "100Mbit/s", "--since", "7d")
    assert done.returncode == 0, done.stderr
    assert daemon.replicas.planning.asked[-1] == ("web", 5.0, "100Mbit/s", timedelta(days=7))
    for wanted in ("2 h 00 min", "800 kbit/s", "8 Mbit/s", "50%", "1 Mbit/s", "1 Gbit/s"):
        assert wanted in done.stdout, done.stdout
    (found,) = json.loads(run(daemon, "replica", "plan", "--format", "json").stdout)
    assert daemon.replicas.planning.asked[-1] == (None, None, None, timedelta(days=1))
    assert found["bandwidth_p99"] == 125_000


def test_limits_are_of_the_host_or_of_a_peer(daemon: Any) -> None:
    assert run(daemon, "replica", "limit", "--host", "1Gbit/s,22:00-06:00=none").returncode == 0
    done = run(daemon, "replica", "limit", "--peer", "south", "200Mbit/s", "--format", "json")
    wanted = {"host": "1Gbit/s,22:00-06:00=none", "peers": {"south": "200Mbit/s"}}
    assert json.loads(done.stdout) == wanted
    shown = run(daemon, "replica", "limit").stdout
    assert "host   1Gbit/s,22:00-06:00=none\nsouth  200Mbit/s\n" in shown
    for wrong in (["1Gbit/s"], ["--host"], ["--host", "--peer", "south", "1Gbit/s"]):
        assert run(daemon, "replica", "limit", *wrong).returncode == 2


def until(stream: Any, wanted: str) -> str:
    """What is read until a line with `wanted` came for the second time."""
    text = ""
    while text.count(wanted) < 2:
        text += os.read(stream, 65536).decode()
    return text


@pytest.mark.parametrize("as_json", [False, True])
def test_a_status_that_is_watched_prints_rows_in_a_pipe_until_ctrl_c(daemon: Any, as_json: bool) -> None:
    run(daemon, "replica", "enable", "web", "--to", "south")
    argv = [*RUN, "replica", "status", "--watch", *(["--format", "json"] if as_json else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env(daemon)) as watching:
        assert watching.stdout is not None
        text = until(watching.stdout.fileno(), "replicating")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
    lines = text.splitlines()
    if as_json:
        assert [json.loads(line)[0]["vm"] for line in lines[:2]] == ["web", "web"]
    else:
        assert lines[0].startswith("TIME")
        assert [line.split()[1] for line in lines[1:3]] == ["web", "web"]


def test_a_status_that_is_watched_is_written_over_on_a_terminal(daemon: Any) -> None:
    run(daemon, "replica", "enable", "web", "--to", "south")
    ours, its = pty.openpty()
    with subprocess.Popen(
        [*RUN, "replica", "status", "web", "--watch"], stdout=its, env=env(daemon)
    ) as watching:
        os.close(its)
        text = until(ours, "replicating")
        watching.send_signal(signal.SIGINT)
        watching.wait(10)
    os.close(ours)
    first, second = text.split("\x1b[4A", 1)  # a heading, a row, how far it is, and what is wrong
    assert first.count("RPO") == second.count("RPO") == 1


def test_history_is_shown_as_totals_and_charts(daemon: Any) -> None:
    done = run(daemon, "replica", "history", "web", "--since", "2h")
    assert done.returncode == 0, done.stderr
    assert daemon.replicas.sent.asked[-1] == timedelta(hours=2)
    assert "240 arrived, 3 missed their target" in done.stdout
    bars = [line for line in done.stdout.splitlines() if "█" in line]
    assert all(line[-1] == "█" for line in bars if line.startswith("RPO"))
    assert any("  █" in line for line in bars)  # of two minutes nothing is known
    found = json.loads(run(daemon, "replica", "history", "web", "--format", "json").stdout)
    assert [each["rpo_p99_seconds"] for each in found["intervals"]] == [1.0, 2.0, 3.0, 6.0]
    assert run(daemon, "replica", "history", "web", "--since", "91d").returncode == 2
    assert run(daemon, "replica", "history", "web", "--reset").returncode == 0
    assert daemon.replicas.sent.reset == ("web",)


def test_another_host_may_send_a_replica(daemon: Any) -> None:
    done = run(daemon, "replica", "accept-from", "web", "--peer", "south")
    assert (done.returncode, "'south' may send replica 'web'" in done.stderr) == (0, True)
    assert daemon.replicas.held.accepted == ("web", ReplicaSender(peer="south"))
    done = run(daemon, "replica", "accept-from", "web", "--peer", "south", "--yes", "--format", "json")
    assert json.loads(done.stdout)["accepted_from"] == "south"
    assert daemon.replicas.held.accepted == ("web", ReplicaSender(peer="south", replace=True))


def test_peers_and_replicas_are_listed_and_removed(daemon: Any) -> None:
    assert "north" in run(daemon, "replica", "peer", "list").stdout
    assert "web" in run(daemon, "replica", "list").stdout
    assert run(daemon, "replica", "peer", "remove", "north").returncode == 0
    assert run(daemon, "replica", "remove", "web").returncode == 0
    assert (daemon.replicas.peers.asked[-1], daemon.replicas.held.removed) == ("north", ["web"])
