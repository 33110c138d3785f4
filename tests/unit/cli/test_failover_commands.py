"""`holdfast replica failover`, `commit`, `reclaim` and `turns`: what each asks for and prints."""

import json
from datetime import datetime
from typing import Any

from command_line import run

from holdfast.spec.seed import SeedExport, SeedFromVm, SeedImport
from holdfast.spec.turn import Failover, PlannedFailover

VM = "0f8fad5b-d9cb-469f-a165-70867728950e"


def test_a_failover_names_a_point_or_a_time_or_neither(daemon: Any) -> None:
    for options, wanted in (
        ((), Failover()),
        (("--point", "12", "--commit"), Failover(point=12, commit=True)),
    ):
        assert run(daemon, "replica", "failover", "web", *options).returncode == 0
        assert daemon.replicas.turning.asked[-1] == ("web", wanted)
    time = "2026-11-25T13:40:00+00:00"
    assert run(daemon, "replica", "failover", "web", "--point", time).returncode == 0
    assert daemon.replicas.turning.asked[-1] == ("web", Failover(time=datetime.fromisoformat(time)))
    assert run(daemon, "replica", "failover", "web", "--point", "newest").returncode == 2


def test_a_planned_one_is_of_the_vm_as_it_is(daemon: Any) -> None:
    done = run(daemon, "replica", "failover", "web", "--planned", "--to", "south", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    assert daemon.replicas.turning.asked[-1] == ("web", PlannedFailover(peer="south", timeout_seconds=30))
    for option in ("--cancel", "--commit"):
        assert run(daemon, "replica", "failover", "web", "--planned", option).returncode == 2


def test_it_is_taken_back_or_committed(daemon: Any) -> None:
    assert run(daemon, "replica", "failover", "web", "--cancel").returncode == 0
    assert run(daemon, "replica", "failover", "web", "--cancel", "--point", "3").returncode == 2
    assert run(daemon, "replica", "commit", "web").returncode == 0
    assert daemon.replicas.turning.asked == [("web", "cancel"), ("web", "commit")]


def test_taking_a_vm_back_wants_a_yes(daemon: Any) -> None:
    assert run(daemon, "replica", "reclaim", "web").returncode == 2
    assert daemon.replicas.turning.asked == []
    done = run(daemon, "replica", "reclaim", "web", "--yes", "--format", "json")
    assert json.loads(done.stdout)["turn"] == "primary"


def test_turns_are_listed(daemon: Any) -> None:
    assert "fenced" in run(daemon, "replica", "turns").stdout
    (one,) = json.loads(run(daemon, "replica", "turns", "--format", "json").stdout)
    assert (one["name"], one["turn"], one["term"], one["peer"]) == ("web", "fenced", 2, "south")


def test_a_seed_is_of_a_folder_or_of_a_vm(daemon: Any) -> None:
    asked = daemon.replicas.seeds.asked
    done = run(daemon, "replica", "export-seed", "web", "--peer", "south", "--to", "/media/web")
    assert done.returncode == 0, done.stderr
    assert asked[-1] == ("web", SeedExport(peer="south", folder="/media/web"))
    assert run(daemon, "replica", "import-seed", "/media/web").returncode == 0
    assert asked[-1] == ("web", SeedImport(folder="/media/web"))
    other = ("--from-vm", "old", "--peer", "north", "--vm", VM)
    assert run(daemon, "replica", "import-seed", *other, "--name", "web").returncode == 0
    assert asked[-1] == ("old", SeedFromVm(from_vm="old", peer="north", vm=VM, name="web"))
    for options in ((), ("/media/web", *other), other[:2]):
        assert run(daemon, "replica", "import-seed", *options).returncode == 2
