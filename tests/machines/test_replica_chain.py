"""Three daemons and a guest that writes: north sends to south, south on to west, and what becomes of that.

What west holds is read as it lies there, with nothing of Holdfast running on west.
"""

import os
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
from test_failover import on_disk, run_guest, written
from test_replica import _content, free_port

from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.errors import RemoteError
from holdfast.spec.vm import VmState

pytestmark = pytest.mark.slow
_LIMIT = 60.0


class Three:
    def __init__(self, north: LiveHost, south: LiveHost, west: LiveHost) -> None:
        self.north, self.south, self.west = north, south, west

    def until(self, what: str, found: Callable[[], Any], wanted: Callable[[Any], bool] = bool) -> Any:
        deadline = time.monotonic() + _LIMIT
        while not wanted(seen := found()):
            tails = [each.tail() for each in (self.north, self.south, self.west)]
            assert time.monotonic() < deadline, (what, seen, *tails)
            time.sleep(0.2)
        return seen

    def status(self, host: LiveHost, peer: str) -> dict[str, Any]:
        found = host.call("GET", "/v1/replica/status")
        return next((dict(each) for each in found if each["peer"] == peer), {})

    def newest(self, host: LiveHost) -> str:
        """The instant of a host's newest point, as north told it."""
        return next((str(each["newest"]) for each in host.call("GET", "/v1/replica/held")), "")

    def until_goes_on(self, host: LiveHost, count: int = 2) -> None:
        """Points arrive that were taken from now on."""
        seen = {self.newest(host)}

        def more() -> int:
            seen.add(self.newest(host))
            return len(seen)

        self.until("new points", more, lambda found: found > count)

    def until_turn(self, host: LiveHost, turn: str) -> None:
        def turns() -> list[str]:
            return [each["turn"] for each in host.call("GET", "/v1/replica/turns")]

        self.until(f"the turn {turn}", turns, lambda seen: seen == [turn])

    def disks_at_west(self) -> list[bytes]:
        """Of the newest point; west's daemon must not run."""
        replica = ReplicaStore(self.west.state.replicas).replica(NAME)
        opened = replica.open_point(replica.points()[-1].number)
        disks = [_content(disk.blockdev()) for _, disk in sorted(opened.disks.items())]
        replica.close_point(opened.token)
        replica.close()
        return disks

    def nothing_whole(self) -> None:
        for host in (self.north, self.south, self.west):
            assert rows(host, "SELECT kind FROM events WHERE kind = 'replica.full-copy-done'") == []

    def lose_north(self) -> None:
        self.north.kill()
        for marked in self.north.qemus():
            os.kill(marked.ref.pid, signal.SIGKILL)


def pair(sender: LiveHost, receiver: LiveHost, names: tuple[str, str], port: int) -> None:
    token = receiver.call("POST", "/v1/replica/tokens", {})["token"]
    peer = {"name": names[1], "address": f"https://127.0.0.1:{port}", "token": token, "own_name": names[0]}
    sender.call("POST", "/v1/replica/peers", peer)


@pytest.fixture
def three(tmp_path: Path, small: SmallGuest) -> Iterator[Three]:
    ports = [free_port() for _ in range(3)]
    listen = [("--replica-listen", f"127.0.0.1:{port}") for port in ports]
    with (
        live_host(tmp_path / "north", *listen[0]) as north,
        live_host(tmp_path / "south", *listen[1]) as south,
        live_host(tmp_path / "west", *listen[2]) as west,
    ):
        for host in (north, south, west):
            with_small_images(host, small)
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        north.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))
        pair(north, south, ("north", "south"), ports[1])
        pair(south, west, ("south", "west"), ports[2])
        north.do("POST", f"/v1/vms/{NAME}/start")
        north.wait_agent(NAME)
        north.run_in(NAME, WRITER)
        north.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
        made = Three(north, south, west)
        made.until("the first point", lambda: made.newest(south), lambda seen: seen not in ("", "None"))
        asked = {"peer": "west", "rpo_seconds": 2}
        assert south.call("POST", f"/v1/replica/held/{NAME}/extension", asked)["sent_on"] is True
        made.until_goes_on(west)
        yield made


def test_a_chain_outlives_kills_and_goes_on_while_its_end_is_tested(three: Three) -> None:
    north, south, west = three.north, three.south, three.west
    for victim in (south, west):
        before = written(north)
        victim.kill()
        time.sleep(0.5)
        victim.start()
        three.until_goes_on(west, 3)
    assert three.status(south, "west")["full_copies"] == 0
    west.kill()
    assert of_one_instant(three.disks_at_west()) >= before
    west.start()
    three.until_goes_on(west)
    assert rows(south, "SELECT kind FROM events WHERE kind = 'replica.compared'") == []

    west.call("POST", f"/v1/replica/held/{NAME}/test", {})
    three.until_goes_on(west)
    west.wait_agent(f"{NAME} - Test")
    west.call("DELETE", f"/v1/replica/held/{NAME}/test")
    three.until_goes_on(west)
    three.nothing_whole()


def test_it_fails_over_at_its_end_and_the_middle_takes_the_vm_from_there(three: Three) -> None:
    north, south, west = three.north, three.south, three.west
    before = written(north)
    three.until_goes_on(west, 3)
    three.lose_north()
    south.kill()
    west.do("POST", f"/v1/replica/held/{NAME}/failover", {})
    west.wait_agent(NAME)
    assert on_disk(west) >= before
    south.start()
    with pytest.raises((OperationEndedBadly, RemoteError), match="runs on 'west'"):
        south.do("POST", f"/v1/replica/held/{NAME}/failover", {})
    west.call("POST", f"/v1/replica/held/{NAME}/commit")
    run_guest(west)

    def back() -> Any:
        return three.status(west, "to south").get("rpo_seconds")

    three.until("replication back", back, lambda seen: seen is not None)
    assert three.status(south, "west") == {}
    north.start()
    three.until_turn(north, "fenced")
    with pytest.raises((OperationEndedBadly, RemoteError), match="replica-fenced"):
        north.do("POST", f"/v1/vms/{NAME}/start")
    three.nothing_whole()


def test_a_failover_in_its_midst_makes_it_the_replication_of_the_vm(three: Three) -> None:
    north, south, west = three.north, three.south, three.west
    before = written(north)
    points = len(west.call("GET", f"/v1/replica/held/{NAME}/points"))
    north.do("POST", f"/v1/vms/{NAME}/replica/failover", {})
    south.wait_agent(NAME)
    assert on_disk(south) >= before
    run_guest(south)
    three.until_goes_on(west)
    status = three.status(south, "west")
    assert (status["sent_on"], status["full_copies"], status["target_seconds"]) == (False, 0, 2.0)
    assert len(west.call("GET", f"/v1/replica/held/{NAME}/points")) > points
    before = written(south)
    three.until_goes_on(west, 3)
    three.nothing_whole()
    west.stop()
    assert of_one_instant(three.disks_at_west()) >= before
    assert {each["peer"] for each in south.call("GET", "/v1/replica/status")} >= {"west"}
    south.do("POST", f"/v1/vms/{NAME}/stop", {"timeout_seconds": 60})
    south.wait_state(NAME, VmState.OFF)
    assert of_one_instant([content(south, NAME, each) for each in own_specs(south, NAME)[0]["disks"]])
