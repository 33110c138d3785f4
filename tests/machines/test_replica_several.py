"""Three daemons: a VM is sent to two of them, one of which is killed; then it fails over, and all goes on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layer_reading import rows
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_checkpoint_crash import NAME, of_one_instant
from test_failover import on_disk, run_guest, written
from test_replica import _content, free_port

from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.operation import Operation
from holdfast.spec.units import MIB

_LIMIT = 90.0
_AGREED = {
    "rpo_seconds": 2,
    "priority": "high",
    "limit": "400Mbit/s",
    "points": "all:5m",
    "failover": {"addresses": [{"nic": "nic0", "addresses": ["192.0.2.10/24"]}]},
}


class Three:
    """`north` sends to the other two, all of which listen."""

    def __init__(self, hosts: dict[str, tuple[LiveHost, int]]) -> None:
        self.begun = time.monotonic()
        self.hosts = {name: host for name, (host, _) in hosts.items()}
        self.ports = {name: port for name, (_, port) in hosts.items()}
        self.north, self.south, self.west = (self.hosts[each] for each in ("north", "south", "west"))

    def pair(self, source: str, receiver: str) -> None:
        token = self.hosts[receiver].call("POST", "/v1/replica/tokens", {})["token"]
        address = f"https://127.0.0.1:{self.ports[receiver]}"
        peer = {"name": receiver, "address": address, "token": token, "own_name": source}
        self.hosts[source].call("POST", "/v1/replica/peers", peer)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.begun:.0f} s: {what}", flush=True)

    def until(self, what: str, found: Callable[[], Any], wanted: Callable[[Any], bool] = bool) -> Any:
        deadline = time.monotonic() + _LIMIT
        while not wanted(seen := found()):
            assert time.monotonic() < deadline, (what, seen, *(each.tail() for each in self.hosts.values()))
            time.sleep(0.1)
        return seen

    def until_sent(self, host: LiveHost, peer: str) -> dict[str, Any]:
        """What has been written by now is there."""
        before = time.time()

        def current(seen: dict[str, Any]) -> bool:
            rpo = seen.get("rpo_seconds")
            return rpo is not None and time.time() - rpo > before

        path = f"/v1/vms/{NAME}/replica"
        return dict(self.until("replication", lambda: host.call("GET", path, peer=peer), current))

    def newest(self, host: LiveHost) -> tuple[int, int]:
        """Points, and what the newest of them holds; its daemon is killed for that, and started again."""
        host.kill()
        replica = ReplicaStore(host.state.replicas).replica(NAME)
        points = replica.points()
        opened = replica.open_point(points[-1].number)
        disks = [_content(disk.blockdev()) for _, disk in sorted(opened.disks.items())]
        replica.close_point(opened.token)
        replica.close()
        host.start()
        return len(points), of_one_instant(disks)


@pytest.fixture
def three(tmp_path: Path, small: SmallGuest) -> Iterator[Three]:
    names = ("north", "south", "west")
    ports = [free_port() for _ in names]
    listens = [("--replica-listen", f"127.0.0.1:{port}") for port in ports]
    with (
        live_host(tmp_path / names[0], *listens[0]) as north,
        live_host(tmp_path / names[1], *listens[1]) as south,
        live_host(tmp_path / names[2], *listens[2]) as west,
    ):
        made = Three(dict(zip(names, zip((north, south, west), ports, strict=True), strict=True)))
        for host in (north, south):
            with_small_images(host, small)
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        north.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks, nics=[{}], start=True))
        made.pair("north", "south")
        made.pair("north", "west")
        yield made


def addresses(host: LiveHost) -> str:
    return host.run_in(NAME, "ip -4 -o addr show dev eth0")


def taken_over(host: LiveHost) -> dict[str, Any]:
    """What the last failover to a host gave, once it has ended."""
    every = host.call("GET", "/v1/operations")["items"]
    (found,) = [each for each in every if each["kind"] == "replica.take-over"]
    return dict(host.end_of(Operation.model_validate(found)).result or {})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_receivers_both_have_it_in_order_and_the_other_goes_on_after_a_failover(three: Three) -> None:
    north = three.north
    run_guest(north)
    north.run_in(NAME, "dd if=/dev/urandom of=/dev/vda bs=1M seek=4 count=10 conv=notrunc,fsync 2>/dev/null")
    north.call("POST", f"/v1/vms/{NAME}/replica", {**_AGREED, "peer": "south"})
    north.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "west", "rpo_seconds": 1})
    points = one_is_killed(three)
    fails_over(three)
    the_other_goes_on(three, points)
    comes_back(three)


def one_is_killed(three: Three) -> int:
    """And goes on where it was; returns its points."""
    north, south, west = three.north, three.south, three.west
    for peer in ("south", "west"):
        three.until_sent(north, peer)
    three.say("both have it")
    west.kill()
    before = written(north)
    three.until_sent(north, "south")  # whatever becomes of west
    assert three.newest(south)[1] >= before
    three.say("west is killed")
    west.start()
    before = written(north)
    assert three.until_sent(north, "west")["full_copies"] == 0
    points, number = three.newest(west)
    assert number >= before
    three.until_sent(north, "south")
    three.until_sent(north, "west")
    three.say("west has all")
    return points


def fails_over(three: Three) -> None:
    """To south, where its guest gets another address."""
    north, south = three.north, three.south
    before = written(north)
    north.do("POST", f"/v1/vms/{NAME}/replica/failover", {"peer": "south"})
    south.wait_agent(NAME)
    assert on_disk(south) >= before
    run_guest(south)
    taken = taken_over(south)
    assert [(each["done"], each["means"]) for each in taken["addresses"]] == [(True, "ip")], taken
    assert "192.0.2.10/24" in addresses(south)
    three.say("failed over")


def the_other_goes_on(three: Three, points: int) -> None:
    """West is sent to by south, with what it holds."""
    south, west = three.south, three.west
    three.pair("south", "west")
    south.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "west", "rpo_seconds": 1})
    before = written(south)
    status = three.until_sent(south, "west")
    assert status["points"] > points - 2  # some are thinned out
    _, number = three.newest(west)
    assert number >= before
    (held,) = west.call("GET", "/v1/replica/held")
    assert (held["name"], held["source"]) == (NAME, "south")
    three.say("west goes on")


def comes_back(three: Three) -> None:
    """All is as it was agreed, and only what differs crossed; at north the guest has its own address."""
    north, south = three.north, three.south

    def adopted() -> bool:
        return bool(north.call("GET", "/v1/replica/turns")[0]["turn"] == "replica")

    three.until("a replica", adopted)
    back = three.until_sent(south, _peer_of(south))
    assert (back["target_seconds"], back["priority"], back["limit"]) == (2, "high", "400Mbit/s")
    for host in (north, south):
        assert rows(host, "SELECT kind FROM events WHERE kind = 'replica.full-copy-done'") == []
    sent = rows(south, "SELECT json_extract(data, '$.sent') FROM events WHERE kind = 'replica.compared'")
    assert len(sent) == 2
    assert all(each[0] < 3 * MIB for each in sent), sent
    three.until("standing on its own", lambda: south.call("GET", "/v1/replica/held"), lambda seen: not seen)
    three.say("replicated back")
    south.do("POST", f"/v1/vms/{NAME}/replica/failover", {"peer": _peer_of(south)})
    north.wait_agent(NAME)
    three.until("its own address", lambda: addresses(north), lambda seen: "10.0.2." in seen)
    assert "192.0.2.10" not in addresses(north)
    (agreed,) = rows(north, "SELECT json_extract(record, '$.back.failover.addresses') FROM replica_turns")
    assert "192.0.2.10/24" in json.dumps(agreed)


def _peer_of(south: LiveHost) -> str:
    """What the old host is called as a receiver."""
    peers = south.call("GET", "/v1/replica/peers")
    return str(next(each["name"] for each in peers if each["role"] == "receiver" and each["name"] != "west"))
