"""Disks moved between pools under a guest that writes to them, cancelled, and cut by `kill -9`."""

import time
from typing import Any

from invariants import check_invariants
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import VmState

NAME = "mover"
_DISK = f"/v1/vms/{NAME}/disks/disk0"
_SUM = "dd if=/dev/vda bs=1M count=40 2>/dev/null | md5sum"
# Blocks with their own number, over and over: what is read later is one of them, whole.
_WRITER = """
dd if=/dev/urandom of=/dev/vda bs=1M count=40 2>/dev/null; sync
( number=0; while :; do number=$((number+1)); printf '%015d\\n' $number >/tmp/line
  dd if=/tmp/line of=/dev/vda bs=16 seek=3000000 conv=fsync,notrunc; done ) >/dev/null 2>&1 </dev/null &
"""


def number(host: LiveHost) -> int:
    """What the writer wrote last, past the guest's cache."""
    return int(
        host.run_in(NAME, "dd if=/dev/vda bs=512 skip=93750 count=1 iflag=direct 2>/dev/null | head -c 15")
    )


def files(host: LiveHost, where: str) -> list[str]:
    folder = host.state.vm(NAME) if where == "local" else host.state.root.parent / "pool" / NAME
    return sorted(path.name for path in folder.glob("*.qcow2")) if folder.is_dir() else []


def move(host: LiveHost, to: str) -> None:
    host.do("POST", f"{_DISK}/move", {"to": to})
    assert host.call("GET", _DISK)["pool"] == (None if to == "local" else to)


def test_a_disk_with_checkpoints_moves_while_its_guest_writes(host: LiveHost, small: SmallGuest) -> None:
    place = host.state.root.parent / "pool"
    place.mkdir(mode=0o755)
    host.call("POST", "/v1/pools", {"name": "other", "spec": {"kind": "directory", "path": str(place)}})
    host.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=[{"size": "64MiB"}], start=True))
    host.wait_agent(NAME)
    host.run_in(NAME, _WRITER)
    before = host.run_in(NAME, _SUM)
    host.do("POST", f"/v1/vms/{NAME}/checkpoints", {"name": "one", "type": "standard"})
    move(host, "other")
    assert len(files(host, "other")) == 2 and files(host, "local") == []
    seen = number(host)
    assert host.run_in(NAME, _SUM) == before and number(host) >= seen
    _refusals(host)
    _killed(host, before)
    _at_rest(host, before)
    check_invariants(host)


def _refusals(host: LiveHost) -> None:
    for path, wanted in ((_DISK, "disk-already-there"), (_DISK[:-1] + "7", "disk-not-found")):
        try:
            host.do("POST", f"{path}/move", {"to": "other"})
        except RemoteError as error:
            assert error.wire_id == wanted
        else:
            raise AssertionError(wanted)
    assert host.vm(NAME).state is VmState.RUNNING


def _killed(host: LiveHost, before: str) -> None:
    """The daemon at several moments of a move: it ends well, and the guest goes on with what it wrote."""
    to = "local"
    for delay in (0.05, 0.5):
        begun: dict[str, Any] = host.call("POST", f"{_DISK}/move", {"to": to})
        time.sleep(delay)
        host.kill()
        host.start()
        ended = host.end_of(Operation.model_validate(begun))
        assert ended.state is OperationState.SUCCEEDED, ended
        other = "other" if to == "local" else "local"
        assert len(files(host, to)) == 2 and files(host, other) == []
        host.wait_state(NAME, VmState.RUNNING)
        seen = number(host)
        assert host.run_in(NAME, _SUM) == before
        assert number(host) > seen, "the guest writes on"
        to = other


def _at_rest(host: LiveHost, before: str) -> None:
    """QEMU killed in the middle; moved while it is off; and the checkpoint moved along."""
    where = host.call("GET", _DISK)["pool"] or "local"
    to = "other" if where == "local" else "local"
    begun = host.call("POST", f"{_DISK}/move", {"to": to})
    host.call("POST", f"/v1/vms/{NAME}/kill")
    ended = host.end_of(Operation.model_validate(begun))
    assert ended.state in (OperationState.FAILED, OperationState.SUCCEEDED), ended
    where = host.call("GET", _DISK)["pool"] or "local"
    assert len(files(host, where)) == 2 and files(host, "other" if where == "local" else "local") == []
    move(host, "other" if where == "local" else "local")
    host.do("POST", f"/v1/vms/{NAME}/checkpoints/one/apply", {"start": True})
    host.wait_agent(NAME)
    assert host.run_in(NAME, _SUM) == before
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.wait_state(NAME, VmState.OFF)
