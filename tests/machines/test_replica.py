"""Two daemons and a guest that writes: its replica stays current through kill -9 of everything there is."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layer_reading import content, own_specs, rows
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_checkpoint_crash import NAME, WRITER, of_one_instant

from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.vm import VmState

_LIMIT = 90.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Pair:
    """The source's daemon with its guest, and the receiver's."""

    def __init__(self, source: LiveHost, receiver: LiveHost, port: int) -> None:
        self.source, self.receiver, self.port = source, receiver, port

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.source.call("GET", f"/v1/vms/{NAME}/replica")
        return found

    def until(self, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + _LIMIT
        while not holds(status := self.status()):
            assert time.monotonic() < deadline, (what, status, self.source.tail(), self.receiver.tail())
            time.sleep(0.2)
        return status

    def newest(self) -> tuple[int, Any]:
        held = self.receiver.call("GET", "/v1/replica/held")
        return (held[0]["points"], held[0]["newest"]) if held else (0, None)

    def until_new_points(self, count: int = 3) -> None:
        """Points arrive that were taken from now on."""
        seen = {self.newest()[1]}
        deadline = time.monotonic() + _LIMIT
        while len(seen) <= count:
            assert time.monotonic() < deadline, (self.status(), self.source.tail(), self.receiver.tail())
            seen.add(self.newest()[1])
            time.sleep(0.1)

    def consistencies(self) -> list[str]:
        points = self.receiver.call("GET", f"/v1/replica/held/{NAME}/points")
        return [each["consistency"] for each in points]

    def run_guest(self) -> None:
        self.source.do("POST", f"/v1/vms/{NAME}/start")
        self.source.wait_agent(NAME)
        self.source.run_in(NAME, WRITER)

    def written(self) -> int:
        return int(self.source.run_in(NAME, "cat /run/written || echo 0") or 0)

    def compared(self) -> int:
        """How often both sides were compared."""
        kinds = rows(self.source, "SELECT kind FROM events WHERE kind = 'replica.compared'")
        return len(kinds)

    def newest_point(self) -> list[bytes]:
        """What the disks of the newest point hold; the receiver's daemon must not run."""
        replica = ReplicaStore(self.receiver.state.replicas).replica(NAME)
        point = replica.points()[-1]
        assert not point.lost
        opened = replica.open_point(point.number)
        assert json.loads(opened.attachments["spec"])["name"] == NAME
        disks = [_content(disk.blockdev()) for _, disk in sorted(opened.disks.items())]
        replica.close_point(opened.token)
        replica.close()
        return disks


def _content(node: dict[str, Any]) -> bytes:
    target = Path(f"/tmp/hf-replica-{os.getpid()}.raw")
    try:
        argv = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target.read_bytes()
    finally:
        target.unlink(missing_ok=True)


@pytest.fixture
def pair(tmp_path: Path, small: SmallGuest) -> Iterator[Pair]:
    port = free_port()
    with (
        live_host(tmp_path / "source") as source,
        live_host(tmp_path / "receiver", "--replica-listen", f"127.0.0.1:{port}") as receiver,
    ):
        with_small_images(source, small)
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        source.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))
        token = receiver.call("POST", "/v1/replica/tokens", {"limits": {"vms": 1}})["token"]
        peer = {"name": "south", "address": f"https://127.0.0.1:{port}", "token": token, "own_name": "north"}
        assert source.call("POST", "/v1/replica/peers", peer)["address"] == peer["address"]
        yield Pair(source, receiver, port)


@pytest.mark.slow
def test_a_vm_that_is_stopped_is_current_over_there_and_needs_no_comparison(pair: Pair) -> None:
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until_new_points()
    before = pair.written()
    pair.source.do("POST", f"/v1/vms/{NAME}/stop", {"timeout_seconds": 60})
    spec = own_specs(pair.source, NAME)[0]
    disks = [content(pair.source, NAME, disk) for disk in spec["disks"]]
    assert of_one_instant(disks) >= before
    time.sleep(3)  # what is measured is that nothing grows old meanwhile
    status = pair.status()
    assert (status["rpo_seconds"] < 2, status["lag_bytes"]) == (True, 0), status
    pair.run_guest()
    pair.until_new_points()
    assert pair.compared() == 0
    pair.source.do("POST", f"/v1/vms/{NAME}/stop", {"timeout_seconds": 60})
    spec = own_specs(pair.source, NAME)[0]
    disks = [content(pair.source, NAME, disk) for disk in spec["disks"]]
    pair.receiver.stop()
    assert pair.newest_point() == disks


@pytest.mark.slow
def test_a_vm_that_is_off_is_read_and_gives_way_to_its_start(pair: Pair) -> None:
    asked = {"peer": "south", "rpo_seconds": 1, "consistent_seconds": 2}
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", asked)
    pair.until("it is there", lambda status: status["points"] and status["rpo_seconds"] < 2)
    pair.run_guest()
    pair.until_new_points()
    before = pair.written()
    for marked in pair.source.qemus():
        os.kill(marked.ref.pid, signal.SIGKILL)
    pair.until("it is read", lambda status: pair.compared() > 0 and status["lag_bytes"] == 0)
    status = pair.until("it is current", lambda status: status["rpo_seconds"] < 2)
    assert (status["full_copies"], status["last_error"]) == (0, "")
    compared = pair.compared()
    pair.run_guest()
    pair.until_new_points()
    assert pair.compared() == compared
    pair.until("its agent answered", lambda _: "application" in pair.consistencies())
    seen = pair.written()
    pair.until("the guest writes on", lambda _: pair.written() > seen)
    pair.source.do("POST", f"/v1/vms/{NAME}/stop", {"timeout_seconds": 60})
    # A cycle under way may have kept the last one from being sent in time: then it is read at rest.
    pair.until("all of it is there", lambda status: status["lag_bytes"] == 0 and status["rpo_seconds"] < 1)
    disks = [content(pair.source, NAME, disk) for disk in own_specs(pair.source, NAME)[0]["disks"]]
    pair.receiver.stop()
    assert pair.newest_point() == disks
    assert of_one_instant(disks) >= before


@pytest.mark.slow
def test_a_replica_stays_current_whatever_is_killed(pair: Pair) -> None:
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until("the initial copy", lambda status: bool(status["points"]))
    pair.until_new_points()

    pair.source.kill()
    pair.source.start()
    pair.until_new_points()

    pair.receiver.kill()
    pair.until("the failure is noticed", lambda status: bool(status["last_error"]))
    (found,) = pair.source.call("GET", f"/v1/replica/explain/{NAME}")
    assert found["causes"][0]["rule"] in ("replica-nobody-listens", "replica-link-lost"), found
    pair.receiver.start()
    pair.until_new_points()

    for marked in pair.source.qemus():
        os.kill(marked.ref.pid, signal.SIGKILL)
    pair.source.wait_state(NAME, VmState.FAILED)
    pair.run_guest()
    pair.until_new_points()

    # QEMU's maps were lost with it, and with nothing else; its start may cut off a comparison at rest.
    assert 1 <= pair.compared() <= 2

    before = pair.written()
    pair.until_new_points()
    status = pair.until("calm", lambda status: status["state"] == "replicating")
    assert (status["peer"], status["full_copies"], status["last_error"]) == ("south", 0, "")
    assert status["points"] > 10
    (found,) = pair.receiver.call("GET", f"/v1/replica/explain/{NAME}")
    assert (found["held"], found["state"]) == (True, "connected")
    history = pair.source.call("GET", f"/v1/vms/{NAME}/replica/history")
    assert history["total"]["cycles"] >= status["cycles"] > 0
    pair.receiver.stop()
    assert of_one_instant(pair.newest_point()) >= before
    pair.source.call("DELETE", f"/v1/vms/{NAME}/replica")
    assert pair.source.call("GET", "/v1/replica/status") == []
