"""A trusted VM goes to another host by its replica: what its TPM keeps opens there, and its boot is attested.

One Debian guest with Secure Boot: replicated, tested over there, handed over, handed back.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from debian_guest import debian_vm, with_debian
from live_host import LiveHost, live_host
from test_failover import Two
from test_failover_test import OnReceiver
from test_replica import free_port
from test_sealed_values import FILE, PCRS, VALUE, in_guest

from holdfast.spec.attestation import VmVerdict

NAME = "keeper"
_WHO = "cat /var/lib/cloud/data/instance-id /etc/machine-id /etc/ssh/ssh_host_*_key.pub"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder, ports = tmp_path_factory.mktemp("two"), (free_port(), free_port())
    with (
        live_host(folder / "north", "--replica-listen", f"127.0.0.1:{ports[0]}") as north,
        live_host(folder / "south", "--replica-listen", f"[::1]:{ports[1]}") as south,
    ):
        with_debian(north).do("POST", "/v1/vms", debian_vm(NAME))
        token = south.call("POST", "/v1/replica/tokens", {})["token"]
        peer = {"name": "south", "address": f"https://[::1]:{ports[1]}", "token": token}
        north.call("POST", "/v1/replica/peers", {**peer, "own_name": "north"})
        yield Two(north, south, limit=900.0)


def attested(host: LiveHost) -> None:
    verdict = VmVerdict.model_validate(host.do("POST", f"/v1/vms/{NAME}/trust/attest").result)
    assert verdict.verdict == "pass", verdict


def test_a_trusted_vm_fails_over_with_what_its_tpm_keeps(two: Two) -> None:
    north, south = two.north, two.south
    north.wait_agent(NAME)
    assert in_guest(north, NAME, "seal", PCRS, VALUE, FILE) == "sealed"
    deadline = time.monotonic() + 600
    while "running" in north.run_in(NAME, "cloud-init status || true"):
        assert time.monotonic() < deadline, north.console(NAME)
        time.sleep(3)
    known = north.run_in(NAME, f"sync; {_WHO}")
    attested(north)
    north.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
    two.until_sent(north)

    tests = OnReceiver(south, NAME)
    test: dict[str, Any] = tests.begin(wait_seconds=600)
    assert test["verdict"] == "passed", test
    assert in_guest(south, test["vm"], "unseal", FILE) == VALUE
    guest = south.vm(test["vm"]).guest
    assert (guest.secure_boot, guest.tpm_version) == (True, "2.0")
    # To its guest it is the same instance: nothing of cloud-init runs anew.
    assert south.run_in(test["vm"], _WHO) == known
    south.call("DELETE", f"/v1/replica/held/{NAME}/test")
    tests.assert_nothing_is_left()
    two.until_sent(north)

    north.do("POST", f"/v1/vms/{NAME}/replica/failover", {"timeout_seconds": 300})
    south.wait_agent(NAME)
    assert in_guest(south, NAME, "unseal", FILE) == VALUE
    attested(south)
    south.run_in(NAME, "echo south > /root/where; sync")
    two.until_turn(north, "replica")
    two.until_sent(south)

    south.do("POST", f"/v1/vms/{NAME}/replica/failover", {"timeout_seconds": 300})
    north.wait_agent(NAME)
    assert north.run_in(NAME, "cat /root/where").strip() == "south"
    assert in_guest(north, NAME, "unseal", FILE) == VALUE
    attested(north)
