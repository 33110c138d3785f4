"""What a guest sealed in its TPM opens in the isolated VM of a replica on another host."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_guest import debian_vm, with_debian
from live_host import LiveHost, live_host
from test_failover_test import OnReceiver
from test_replica import free_port
from test_sealing import FILE, PCRS, VALUE, in_guest

from holdfast.spec.vm import UefiBoot

NAME = "keeper"
_WHO = "cat /var/lib/cloud/data/instance-id /etc/machine-id /etc/ssh/ssh_host_*_key.pub"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[LiveHost, LiveHost]]:
    port = free_port()
    with (
        live_host(tmp_path / "source") as source,
        live_host(tmp_path / "receiver", "--replica-listen", f"127.0.0.1:{port}") as receiver,
    ):
        token = receiver.call("POST", "/v1/replica/tokens", {})["token"]
        peer = {"name": "south", "address": f"https://127.0.0.1:{port}", "token": token, "own_name": "north"}
        source.call("POST", "/v1/replica/peers", peer)
        yield with_debian(source), receiver


def test_a_sealed_value_opens_in_the_test_of_a_replica(hosts: tuple[LiveHost, LiveHost]) -> None:
    source, receiver = hosts
    source.do("POST", "/v1/vms", debian_vm(NAME, cpus=1))
    source.wait_agent(NAME)
    deadline = time.monotonic() + 300
    while "running" in source.run_in(NAME, "cloud-init status || true"):
        assert time.monotonic() < deadline, source.console(NAME)
        time.sleep(3)
    assert in_guest(source, NAME, "seal", PCRS, VALUE, FILE) == "sealed"
    known = source.run_in(NAME, f"sync; {_WHO}")
    assert source.vm(NAME).id in known
    source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    deadline = time.monotonic() + 600
    while not source.call("GET", f"/v1/vms/{NAME}/replica")["points"]:
        assert time.monotonic() < deadline, (source.tail(), receiver.tail())
        time.sleep(1)

    tested = OnReceiver(receiver, NAME)
    test = tested.begin(command="true", wait_seconds=600, keep=True)
    assert (test["phase"], test["verdict"]) == ("running", "passed"), test
    view = receiver.vm(f"{NAME} - Test")
    assert isinstance(view.spec.boot, UefiBoot)
    assert view.spec.boot.tpm_identity == source.vm(NAME).id
    assert in_guest(receiver, view.name, "unseal", FILE) == VALUE
    guest = receiver.vm(view.name).guest
    assert (guest.secure_boot, guest.tpm_version) == (True, "2.0")
    # To its guest it is the same instance: nothing of cloud-init runs anew.
    assert receiver.run_in(view.name, _WHO) == known
    receiver.call("DELETE", f"/v1/replica/held/{NAME}/test")
    tested.assert_nothing_is_left()
    source.call("POST", f"/v1/vms/{NAME}/kill")
