"""An older copy of a VM that lies on the receiver already serves as its initial copy."""

from pathlib import Path

import pytest
from live_host import live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_checkpoint_crash import NAME, WRITER, of_one_instant
from test_failover import Two, written
from test_replica import _content, free_port

from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.units import MIB
from holdfast.spec.vm import VmState

_OLD = "old"
_FILL = "seq 1 1400000 | dd of=/dev/vda bs=1M seek=4 iflag=fullblock conv=notrunc,fsync 2>/dev/null"
"""Over 9 MiB, the same on both hosts."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_what_differs_from_an_older_copy_crosses(tmp_path: Path, small: SmallGuest) -> None:
    port = free_port()
    with (
        live_host(tmp_path / "north") as north,
        live_host(tmp_path / "south", "--replica-listen", f"127.0.0.1:{port}") as south,
    ):
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        for host, name in ((south, _OLD), (north, NAME)):
            with_small_images(host, small)
            host.do("POST", "/v1/vms", small_vm(name, small.append, disks=disks, start=True))
        for host, name in ((south, _OLD), (north, NAME)):
            host.wait_agent(name)
            host.run_in(name, _FILL)
        south.do("POST", f"/v1/vms/{_OLD}/stop", {"timeout_seconds": 60})
        south.wait_state(_OLD, VmState.OFF)
        north.run_in(NAME, WRITER)

        token = south.call("POST", "/v1/replica/tokens", {})["token"]
        peer = {"name": "south", "address": f"https://127.0.0.1:{port}", "token": token}
        north.call("POST", "/v1/replica/peers", {**peer, "own_name": "north"})
        seed = {"from_vm": _OLD, "peer": "north", "vm": north.vm(NAME).id, "name": NAME}
        south.do("POST", "/v1/replica/seeds/from-vm", seed)
        north.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
        two = Two(north, south)
        two.until_sent(north)
        two.only_differences(north)
        before = written(north)
        status = two.until_sent(north)
        assert status["full_copies"] == 0
        assert status["counted_changed_bytes"] < 4 * MIB
        assert south.vm(_OLD).state is VmState.OFF  # as it was
        south.kill()
        replica = ReplicaStore(south.state.replicas).replica(NAME)
        opened = replica.open_point(replica.points()[-1].number)
        found = [_content(disk.blockdev()) for _, disk in sorted(opened.disks.items())]
        replica.close()
        assert of_one_instant(found) >= before
        assert found[0][4 * MIB :].startswith(b"1\n2\n3\n")
