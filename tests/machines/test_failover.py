"""Two daemons and a guest that writes: it fails over, planned and not, and comes back by differences only."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layer_reading import content, own_specs, rows
from live_host import LiveHost, OperationEndedBadly, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_checkpoint_crash import NAME, WRITER, of_one_instant
from test_replica import free_port

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.units import MIB
from holdfast.spec.vm import VmState

_LIMIT = 60.0
_FILL = "dd if=/dev/urandom of=/dev/vda bs=1M seek=4 count=10 conv=notrunc,fsync 2>/dev/null"
"""Content that would have to cross whole, were it not for the disks that are there."""


class Two:
    """Both listen; `north` was paired to send to `south`, and not the other way."""

    def __init__(self, north: LiveHost, south: LiveHost, limit: float = _LIMIT) -> None:
        self.north, self.south, self._limit = north, south, limit

    def until(self, what: str, found: Callable[[], Any], wanted: Callable[[Any], bool] = bool) -> Any:
        deadline = time.monotonic() + self._limit
        while not wanted(seen := found()):
            assert time.monotonic() < deadline, (what, seen, self.north.tail(), self.south.tail())
            time.sleep(0.1)
        return seen

    def until_turn(self, host: LiveHost, turn: str) -> None:
        def turns() -> list[str]:
            return [each["turn"] for each in host.call("GET", "/v1/replica/turns")]

        self.until(f"the turn {turn}", turns, lambda seen: seen == [turn])

    def until_sent(self, host: LiveHost) -> dict[str, Any]:
        """The VM is replicated from `host`, and what has been written by now is there."""
        before = time.time()

        def status() -> dict[str, Any]:
            return next(iter(host.call("GET", "/v1/replica/status")), {})

        def current(seen: dict[str, Any]) -> bool:
            rpo = seen.get("rpo_seconds")
            return rpo is not None and time.time() - rpo > before

        return dict(self.until("replication", status, current))

    def until_settled(self, host: LiveHost) -> None:
        self.until(
            "standing on its own", lambda: host.call("GET", "/v1/replica/held"), lambda held: held == []
        )

    def only_differences(self, host: LiveHost) -> None:
        """Of what `host` sent, nothing was whole, and little after it was compared."""
        assert rows(host, "SELECT kind FROM events WHERE kind = 'replica.full-copy-done'") == []
        sent = rows(host, "SELECT json_extract(data, '$.sent') FROM events WHERE kind = 'replica.compared'")
        assert sent
        assert all(each[0] < 2 * MIB for each in sent), sent


def run_guest(host: LiveHost) -> None:
    host.wait_agent(NAME)
    host.run_in(NAME, WRITER)


def written(host: LiveHost) -> int:
    return int(host.run_in(NAME, "cat /run/written 2>/dev/null || echo 0"))


def on_disk(host: LiveHost) -> int:
    """What the guest finds before it writes."""
    return int(host.run_in(NAME, "dd if=/dev/vdb bs=512 count=1 2>/dev/null | cut -d' ' -f1"))


@pytest.fixture
def two(tmp_path: Path, small: SmallGuest) -> Iterator[Two]:
    ports = free_port(), free_port()
    with (
        live_host(tmp_path / "north", "--replica-listen", f"127.0.0.1:{ports[0]}") as north,
        live_host(tmp_path / "south", "--replica-listen", f"127.0.0.1:{ports[1]}") as south,
    ):
        for host in (north, south):
            with_small_images(host, small)
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        north.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))
        token = south.call("POST", "/v1/replica/tokens", {})["token"]
        peer = {"name": "south", "address": f"https://127.0.0.1:{ports[1]}", "token": token}
        north.call("POST", "/v1/replica/peers", {**peer, "own_name": "north"})
        north.do("POST", f"/v1/vms/{NAME}/start")
        north.wait_agent(NAME)
        north.run_in(NAME, _FILL)
        north.run_in(NAME, WRITER)
        medium = str(tmp_path / "medium")
        north.do("POST", f"/v1/vms/{NAME}/replica/seed", {"peer": "south", "folder": medium})
        south.do("POST", "/v1/replica/seeds", {"folder": medium})
        asked = {"peer": "south", "rpo_seconds": 1, "priority": "high", "limit": "900Mbit/s"}
        north.call("POST", f"/v1/vms/{NAME}/replica", asked)
        made = Two(north, south)
        made.until_sent(north)
        made.only_differences(north)
        yield made


def test_a_vm_goes_over_there_and_back_and_nothing_is_lost(two: Two) -> None:
    before = written(two.north)
    two.north.do("POST", f"/v1/vms/{NAME}/replica/failover", {})
    two.south.wait_agent(NAME)
    assert on_disk(two.south) >= before
    run_guest(two.south)
    with pytest.raises((OperationEndedBadly, RemoteError), match=r"replica-fenced|no VM"):
        two.north.do("POST", f"/v1/vms/{NAME}/start")
    two.until_turn(two.north, "replica")
    two.until_settled(two.south)
    back = two.until_sent(two.south)
    assert (back["priority"], back["limit"]) == ("high", "900Mbit/s")  # as it was agreed
    two.only_differences(two.south)

    before = written(two.south)
    two.south.do("POST", f"/v1/vms/{NAME}/replica/failover", {})
    two.north.wait_agent(NAME)
    assert on_disk(two.north) >= before
    two.until_turn(two.south, "replica")
    two.until_settled(two.north)

    # Now without being asked: the host is lost, and comes back.
    run_guest(two.north)
    two.until_sent(two.north)
    two.only_differences(two.north)
    before = written(two.north)
    two.until_sent(two.north)
    two.north.kill()
    for marked in two.north.qemus():
        os.kill(marked.ref.pid, signal.SIGKILL)
    two.south.do("POST", f"/v1/replica/held/{NAME}/failover", {})
    two.south.wait_agent(NAME)
    assert on_disk(two.south) >= before
    two.north.start()
    with pytest.raises(OperationEndedBadly, match="replica-fenced"):
        two.north.do("POST", f"/v1/vms/{NAME}/start")
    two.south.call("POST", f"/v1/replica/held/{NAME}/commit")
    run_guest(two.south)
    two.until_turn(two.north, "replica")
    two.until_settled(two.south)
    two.until_sent(two.south)
    two.only_differences(two.south)
    assert two.north.call("GET", "/v1/vms")["items"] == []
    two.south.do("POST", f"/v1/vms/{NAME}/stop", {"timeout_seconds": 60})
    two.south.wait_state(NAME, VmState.OFF)
    disks = [content(two.south, NAME, disk) for disk in own_specs(two.south, NAME)[0]["disks"]]
    assert of_one_instant(disks) >= before


def runs(host: LiveHost) -> bool:
    """Whether a machine of the VM runs there, whatever is recorded."""
    return bool(host.qemus())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_planned_failovers_are_done_or_undone_whatever_is_killed(two: Two) -> None:
    chance = random.Random(int(os.environ.get("HOLDFAST_SEED", "6")))
    here, there = two.north, two.south
    gone = 0
    for _ in range(int(os.environ.get("HOLDFAST_KILLS", "8"))):
        two.until_sent(here)
        before = written(here)
        begun = here.call("POST", f"/v1/vms/{NAME}/replica/failover", {})
        time.sleep(chance.uniform(0, 8))
        victim = chance.choice((here, there))
        victim.kill()
        assert not (runs(here) and runs(there))
        victim.start()
        ended = here.end_of(Operation.model_validate(begun))
        assert not (runs(here) and runs(there)), ended
        if ended.state is OperationState.SUCCEEDED:
            here, there, gone = there, here, gone + 1
            two.until_turn(there, "replica")
            two.until_settled(here)
        here.wait_agent(NAME)
        assert on_disk(here) >= before
        run_guest(here)
    assert gone
    for host in (two.north, two.south):
        assert rows(host, "SELECT kind FROM events WHERE kind = 'replica.full-copy-done'") == []
