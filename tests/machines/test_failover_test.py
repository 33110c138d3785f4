"""A replica is tested while it goes on arriving: an isolated VM of a point, its check, and nothing left."""

import time
from typing import Any

from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import with_small_images
from test_checkpoint_crash import NAME
from test_replica import Pair, pair  # noqa: F401  (a fixture)

from holdfast.spec.operation import Operation, OperationState

TEST = f"{NAME} - Test"
AT = f"/v1/replica/held/{NAME}"
_READ = "dd if=/dev/vdb bs=512 count=1 2>/dev/null | cut -d' ' -f1"


class OnReceiver:
    """The tests on the receiving host."""

    def __init__(self, host: LiveHost) -> None:
        self.host = host

    def begin(self, **request: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.host.call("POST", f"{AT}/test", request)
        return self.until(found, "running", "ended")

    def until(self, test: dict[str, Any], *phases: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while (found := self.host.call("GET", f"/v1/replica/tests/{test['id']}"))["phase"] not in phases:
            assert time.monotonic() < deadline, (found, self.host.tail())
            time.sleep(0.1)
        return dict(found)

    def tokens(self) -> list[str]:
        return [path.name for path in (self.host.state.replicas / NAME / "open").iterdir()]

    def assert_nothing_is_left(self) -> None:
        assert [vm["name"] for vm in self.host.call("GET", "/v1/vms")["items"]] == []
        assert self.host.qemus() == []
        assert self.tokens() == []
        assert list(self.host.state.vms.iterdir()) == []
        assert list(self.host.state.scratch.glob("*")) in ([], [self.host.state.scratch / "uploads"])
        for folder in ("base", "journal"):
            files = (self.host.state.replicas / NAME / folder).iterdir()
            assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_replica_is_tested_while_it_goes_on(pair: Pair, small: SmallGuest) -> None:  # noqa: F811
    tested, receiver = OnReceiver(pair.receiver), with_small_images(pair.receiver, small)
    pair.source.call("POST", f"/v1/vms/{NAME}/nics", {})
    pair.run_guest()
    pair.source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    pair.until_new_points()
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

    # The daemon is killed: the VM runs on, and its clean-up still comes.
    receiver.kill()
    receiver.start()
    receiver.run_in(TEST, f'[ -z "$({_READ})" ]')
    assert receiver.call("DELETE", f"{AT}/test")["phase"] == "ended"
    tested.assert_nothing_is_left()

    # A check that fails is cleaned up at once.
    test = tested.begin(command="echo broken; exit 3")
    assert (test["phase"], test["verdict"], test["exit_code"]) == ("ended", "failed", 3)
    assert (test["output"], test["ready_seconds"] > 0) == ("broken\n", True)
    tested.assert_nothing_is_left()

    # A VM that comes to stand on its own, while it runs, needs the replica no more.
    tested.begin(for_seconds=3600)
    seen = int(receiver.run_in(TEST, _READ))
    settled = Operation.model_validate(receiver.call("POST", f"/v1/vms/{TEST}/replica-settle"))
    assert receiver.end_of(settled).state is OperationState.SUCCEEDED
    deadline = time.monotonic() + 30
    while tested.tokens():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [disk.origin for disk in receiver.vm(TEST).spec.disks] == [None, None]
    receiver.run_in(TEST, "echo 3 >/proc/sys/vm/drop_caches")
    assert int(receiver.run_in(TEST, _READ)) == seen
    receiver.call("DELETE", f"{AT}/test")
    tested.assert_nothing_is_left()
    verdicts = [each["verdict"] for each in receiver.call("GET", "/v1/replica/tests", replica=NAME)]
    assert verdicts == ["passed", "failed", "passed"]
    assert pair.status()["full_copies"] == 0
