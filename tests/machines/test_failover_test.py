"""A replica is tested while it goes on arriving: an isolated VM of a point, its check, and nothing left."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from layer_reading import content, own_specs
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import with_small_images
from test_checkpoint_crash import NAME, newest
from test_replica import Pair, pair  # noqa: F401  (a fixture)

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState

TEST = f"{NAME} - Test"
AT = f"/v1/replica/held/{NAME}"
_READ = "dd if=/dev/vdb bs=512 count=1 2>/dev/null | cut -d' ' -f1"


class OnReceiver:
    """The tests on the receiving host."""

    def __init__(self, host: LiveHost, replica: str = NAME) -> None:
        self.host, self._replica = host, replica

    def begin(self, **request: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.host.call("POST", f"/v1/replica/held/{self._replica}/test", request)
        return self.until(found, "running", "ended")

    def until(self, test: dict[str, Any], *phases: str) -> dict[str, Any]:
        deadline = time.monotonic() + 700
        while (found := self.host.call("GET", f"/v1/replica/tests/{test['id']}"))["phase"] not in phases:
            assert time.monotonic() < deadline, (found, self.host.tail())
            time.sleep(0.1)
        return dict(found)

    def tokens(self) -> list[str]:
        return [path.name for path in (self.host.state.replicas / self._replica / "open").iterdir()]

    def assert_nothing_is_left(self) -> None:
        assert [vm["name"] for vm in self.host.call("GET", "/v1/vms")["items"]] == []
        assert self.host.qemus() == []
        assert self.tokens() == []
        assert list(self.host.state.vms.iterdir()) == []
        assert list(self.host.state.scratch.glob("*")) in ([], [self.host.state.scratch / "uploads"])
        for folder in ("base", "journal"):
            files = (self.host.state.replicas / self._replica / folder).iterdir()
            assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.slow
def test_a_vm_over_a_point_is_a_vm_like_others(pair: Pair, small: SmallGuest) -> None:  # noqa: F811
    tested, receiver = OnReceiver(pair.receiver), with_small_images(pair.receiver, small)
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until_new_points()
    tested.begin()
    at = f"/v1/vms/{TEST}"
    seen = int(receiver.run_in(TEST, _READ))
    for number, kind in enumerate(("standard", "production-only", "standard")):
        receiver.run_in(TEST, f"echo {seen + number + 1} | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null")
        receiver.do("POST", f"{at}/checkpoints", {"name": f"c{number}", "type": kind})
    receiver.do("DELETE", f"{at}/checkpoints/c1")

    # Killed while it comes to stand on its own: the chain is what it was, and it goes on.
    receiver.call("POST", f"{at}/replica-settle")
    receiver.kill()
    receiver.start()
    (operation,) = receiver.call("GET", "/v1/operations", running=True)["items"] or [None]
    if operation is not None:
        receiver.end_of(Operation.model_validate(operation))
    receiver.run_in(TEST, "echo 3 >/proc/sys/vm/drop_caches")
    assert int(receiver.run_in(TEST, _READ).split()[0]) == seen + 3
    _until(lambda: not tested.tokens())
    for number in (2, 0):
        receiver.do("POST", f"{at}/checkpoints/c{number}/apply", {})
        receiver.wait_agent(TEST)
        assert int(receiver.run_in(TEST, _READ).split()[0]) == seen + number + 1
    receiver.call("DELETE", f"{AT}/test")
    tested.assert_nothing_is_left()

    # One that is off: cloned whole, then it stands on its own as well.
    tested.begin()
    seen = int(receiver.run_in(TEST, _READ))
    receiver.do("POST", f"{at}/stop", {"timeout_seconds": 60})
    receiver.do("POST", f"{at}/clone", {"name": "copy"})
    disks = [content(receiver, "copy", each) for each in own_specs(receiver, "copy")[0]["disks"]]
    assert newest(disks[1]) == seen
    receiver.do("POST", f"{at}/replica-settle")
    _until(lambda: not tested.tokens())
    for name in (TEST, "copy"):
        assert [content(receiver, name, each) for each in own_specs(receiver, name)[0]["disks"]] == disks
    receiver.do("DELETE", "/v1/vms/copy")
    receiver.call("DELETE", f"{AT}/test")
    tested.assert_nothing_is_left()


@pytest.mark.slow
def test_a_test_that_the_daemon_is_killed_in_leaves_nothing(pair: Pair, small: SmallGuest) -> None:  # noqa: F811
    tested, receiver = OnReceiver(pair.receiver), with_small_images(pair.receiver, small)
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until_new_points()
    verdicts = []
    for delay in (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 6.0):
        test = receiver.call("POST", f"{AT}/test", {"command": "true"})
        time.sleep(delay)  # the moments at which it is killed
        receiver.kill()
        receiver.start()
        verdicts.append(tested.until(test, "ended")["verdict"])
        _until(lambda: not tested.tokens())
        tested.assert_nothing_is_left()
    assert "passed" in verdicts
    pair.until_new_points()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_replica_is_tested_while_it_goes_on(pair: Pair, small: SmallGuest) -> None:  # noqa: F811
    tested, receiver = OnReceiver(pair.receiver), pair.receiver
    pair.source.call("POST", f"/v1/vms/{NAME}/nics", {})
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until_new_points()
    with pytest.raises(RemoteError) as caught:
        tested.begin()
    assert caught.value.wire_id == "image-not-found"  # its kernel
    tested.assert_nothing_is_left()
    with_small_images(receiver, small)
    before = pair.written()
    pair.until_new_points(2)

    # A check that passes, and a VM that stays.
    check = f'n=$({_READ}); [ "$n" -ge {before} ] && cat /sys/class/net/*/address'
    test = tested.begin(command=check, keep=True)
    assert (test["phase"], test["verdict"], test["exit_code"]) == ("running", "passed", 0), test
    mac = pair.source.vm(NAME).spec.nics[0].mac
    assert mac in test["output"]
    nic = receiver.vm(TEST).spec.nics[0]
    assert (nic.unplugged, nic.switch, nic.mac) == (True, None, mac)
    assert len(tested.tokens()) == 1
    seen = int(receiver.run_in(TEST, _READ))
    pair.until_new_points(2)
    assert int(receiver.run_in(TEST, _READ)) == seen  # it stands still, and replication does not
    receiver.run_in(TEST, "dd if=/dev/zero of=/dev/vdb bs=4096 count=64 conv=fsync 2>/dev/null")

    # The daemon is killed: the VM runs on. It comes to stand on its own, and needs the replica no more.
    receiver.kill()
    receiver.start()
    settled = Operation.model_validate(receiver.call("POST", f"/v1/vms/{TEST}/replica-settle"))
    assert receiver.end_of(settled).state is OperationState.SUCCEEDED
    _until(lambda: not tested.tokens())
    assert [disk.origin for disk in receiver.vm(TEST).spec.disks] == [None, None]
    receiver.run_in(TEST, "echo 3 >/proc/sys/vm/drop_caches")
    receiver.run_in(TEST, f'[ -z "$({_READ})" ] && [ "$({_READ.replace("vdb", "vda")})" -ge {before} ]')
    assert receiver.call("DELETE", f"{AT}/test")["phase"] == "ended"
    tested.assert_nothing_is_left()

    # A check that fails is cleaned up at once.
    test = tested.begin(command="echo broken; exit 3")
    assert (test["phase"], test["verdict"], test["exit_code"]) == ("ended", "failed", 3)
    assert (test["output"], test["ready_seconds"] > 0) == ("broken\n", True)
    tested.assert_nothing_is_left()
    verdicts = [each["verdict"] for each in receiver.call("GET", "/v1/replica/tests", replica=NAME)]
    assert verdicts == ["failed", "passed"]
    assert pair.status()["full_copies"] == 0
