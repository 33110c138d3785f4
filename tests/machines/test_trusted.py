"""A trusted VM of the usual kind: Secure Boot and TPM as its own guest sees them, and what they outlive.

One Debian guest serves all tests; they run in the order of this file.
"""

import base64
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_chain import EspOf, other_signed_grub
from debian_guest import debian_vm, with_debian
from invariants import check_invariants
from live_host import LiveHost, OperationEndedBadly, live_host
from small_guest import SmallGuest
from small_vms import with_small_images

from holdfast.spec.attestation import PolicyAnswer, TrustView, VmVerdict
from holdfast.spec.operation import Operation
from holdfast.spec.trust import LinkRole, Severity
from holdfast.spec.vm import VmState

NAME = "Trusted One"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGfYTC3uqUbUG6e0nCkVmpWeHYqV1wQyJ5d4wQ9l8Vjz me@there"
# Register 10 is IMA's: it changes with every program that the guest runs.
_PCRS = "cat /sys/class/tpm/tpm0/pcr-sha256/[0-9]"
GRUB = "/EFI/BOOT/grubx64.efi"
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: SmallGuest) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("trusted")) as running:
        yield with_debian(with_small_images(running, small))


@pytest.fixture(scope="module")
def trusted(shared: LiveHost) -> str:
    """The VM; its daemon is killed while it boots."""
    body = debian_vm(NAME, cloud_init={"user": "me", "ssh_keys": [KEY]})
    shared.do("POST", "/v1/vms", body)
    (before,) = shared.qemus()
    shared.kill()
    shared.start()
    assert shared.vm(NAME).state is VmState.RUNNING
    shared.wait_agent(NAME)
    assert [marked.ref for marked in shared.qemus()] == [before.ref]
    return NAME


def wait_facts(host: LiveHost, name: str) -> None:
    """Until everything that the guest says of itself has been read."""
    deadline = time.monotonic() + 90
    while host.vm(name).guest.tpm_version is None or not host.vm(name).addresses:
        assert time.monotonic() < deadline, host.vm(name)
        time.sleep(0.5)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_guest_sees_secure_boot_and_a_tpm(shared: LiveHost, trusted: str) -> None:
    wait_facts(shared, trusted)
    view = shared.vm(trusted)
    assert view.guest.secure_boot is True and view.guest.tpm_version == "2.0"
    assert view.guest.agent == "connected" and view.boot_seconds and view.addresses
    assert view.guest.os_name and "Debian" in view.guest.os_name
    assert "Secure Boot is off" not in view.notices
    # What the agent was asked for is what the kernel itself says.
    said = shared.run_in(trusted, "dmesg | grep -i 'secure boot\\|secureboot\\|lockdown' || true")
    assert "enabled" in said or "locked down" in said, said


def test_cloud_init_has_done_its_part(shared: LiveHost, trusted: str) -> None:
    shared.run_in(trusted, "cloud-init status --wait >/dev/null || true", limit=240)
    assert shared.run_in(trusted, "hostname").strip() == "trusted-one"
    time.sleep(10)  # for so long, what the guest said of itself is not asked for again
    assert shared.vm(trusted).guest.host_name == "trusted-one"
    assert KEY.split()[1] in shared.run_in(trusted, "cat ~me/.ssh/authorized_keys")
    size = int(shared.run_in(trusted, "df -B1 --output=size / | tail -1"))
    assert size > 7 * 1024**3


def test_processes_are_unprivileged_and_tell_no_secrets(shared: LiveHost, trusted: str) -> None:
    mark = f"vm:{shared.vm(trusted).id}"
    keys = {path.read_bytes().strip() for path in shared.state.keys.rglob("*") if path.is_file()}
    keys.add(bytes.fromhex(json.loads((shared.state.keys / "host.key").read_text())["secret"]))
    found = [each for each in shared.processes.find(owner=mark) if each.role in ("qemu", "swtpm")]
    assert sorted(each.role for each in found) == ["qemu", "swtpm"]
    for each in found:
        folder = Path(f"/proc/{each.ref.pid}")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
        )
        uids = set(status["Uid"].split())
        assert os.getuid() != 0 or (len(uids) == 1 and int(uids.pop()) >= 1_900_000_000)
        assert status["Seccomp"].strip() == "2" and int(status["CapEff"], 16) == 0
        seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        assert not [key for key in keys if key and (key in seen or key.hex().encode() in seen)]
    logs = [shared.log, *shared.state.vm(trusted).glob("*.log")]
    text = b"".join(path.read_bytes() for path in logs)
    assert not [key for key in keys if len(key) >= 16 and (key in text or key.hex().encode() in text)]


def attest(host: LiveHost, name: str) -> VmVerdict:
    return VmVerdict.model_validate(host.do("POST", f"/v1/vms/{name}/trust/attest").result)


def failures(verdict: VmVerdict) -> list[tuple[str, str]]:
    return [(each.id, each.text) for each in verdict.findings if each.severity is Severity.FAILURE]


def test_its_boot_is_attested_by_its_own_tpm(shared: LiveHost, trusted: str) -> None:
    verdict = attest(shared, trusted)
    assert verdict.verdict == "pass" and verdict.attested and not failures(verdict), verdict
    assert {"quote-valid", "secure-boot-on"} <= {each.id for each in verdict.findings}
    roles = [link.role for link in verdict.chain]
    assert {LinkRole.SHIM, LinkRole.GRUB, LinkRole.KERNEL, LinkRole.SECURE_BOOT} <= set(roles), roles
    signers = {signer.subject for link in verdict.chain for signer in link.signers}
    assert any("Microsoft" in each for each in signers) and any("Debian" in each for each in signers), signers
    inside = shared.run_in(trusted, "cat /sys/class/tpm/tpm0/pcr-sha256/[47]").split()
    assert [verdict.pcrs[4], verdict.pcrs[7]] == [each.lower() for each in inside]
    view = TrustView.model_validate(shared.call("GET", f"/v1/vms/{trusted}/trust"))
    assert view.enrolment is not None and view.verdict == verdict
    with shared.client() as client:
        metrics = client.content("GET", "/metrics", None).decode()
    assert f'holdfast_trust_verdict{{vm="{trusted}"}} 1.0' in metrics


def test_a_policy_is_tried_before_it_counts(shared: LiveHost, trusted: str) -> None:
    policy = shared.call("GET", f"/v1/vms/{trusted}/trust/policy")
    grub = next(each for each in attest(shared, trusted).chain if each.role is LinkRole.GRUB)
    stricter = {**policy, "forbidden": [grub.digest]}
    path = f"/v1/vms/{trusted}/trust/policy"
    tried = PolicyAnswer.model_validate(shared.call("PUT", path, stricter, dry_run="true"))
    assert tried.change and not tried.stored, tried
    assert tried.change.before.verdict == "pass" and tried.change.after.verdict == "fail", tried
    assert shared.call("GET", path) == policy
    learned = PolicyAnswer.model_validate(shared.call("POST", f"{path}/learn"))
    assert learned.stored and learned.policy.baseline, learned
    assert "baseline-matches" in {each.id for each in attest(shared, trusted).findings}


def test_attestations_at_once_and_a_killed_daemon_spoil_none(shared: LiveHost, trusted: str) -> None:
    path = f"/v1/vms/{trusted}/trust/attest"
    begun = [Operation.model_validate(shared.call("POST", path)) for _ in range(3)]
    ends = [shared.end_of(each) for each in begun]
    assert [each.result and each.result["verdict"] for each in ends] == ["pass"] * 3, ends
    # Killed with the guest's TPM open: the operation goes on, and the TPM is not taken for ever.
    begun = [Operation.model_validate(shared.call("POST", path))]
    time.sleep(1)
    shared.kill()
    shared.start()
    shared.wait_agent(trusted)
    assert shared.end_of(begun[0]).state.ended
    assert attest(shared, trusted).verdict == "pass"


def test_a_secret_is_given_to_a_guest_that_passes(shared: LiveHost, trusted: str) -> None:
    secret = os.urandom(100)
    body = {"name": "disk-key", "content": base64.b64encode(secret).decode()}
    shared.call("PUT", f"/v1/vms/{trusted}/trust/secrets", body)
    released = shared.do("POST", f"/v1/vms/{trusted}/trust/release", {"name": "disk-key"})
    assert released.result and released.result["to"] == "/run/holdfast/secrets/disk-key"
    place = released.result["to"]
    assert base64.b64decode(shared.run_in(trusted, f"base64 {place}")) == secret
    assert shared.run_in(trusted, f"stat -c %a:%u {place}").strip() == "600:0"
    kept = b"".join(path.read_bytes() for path in shared.state.root.rglob("*.hf*") if path.is_file())
    logs = shared.log.read_bytes() + b"".join(p.read_bytes() for p in shared.state.vm(trusted).glob("*.log"))
    events = json.dumps(shared.call("GET", "/v1/events/recent", limit=1000, subject=trusted))
    assert "trust.secret-released" in events
    for text in (kept, logs, events.encode()):
        assert not any(each in text for each in (secret, secret.hex().encode(), base64.b64encode(secret)))


def test_state_of_trust_outlives_save_and_a_killed_daemon(shared: LiveHost, trusted: str) -> None:
    pcrs, boot_id = shared.run_in(trusted, _PCRS), shared.run_in(trusted, _BOOT_ID)
    assert len(set(pcrs.split())) > 5
    shared.do("POST", f"/v1/vms/{trusted}/save")
    check_invariants(shared)
    shared.kill()
    shared.start()
    shared.do("POST", f"/v1/vms/{trusted}/start")
    shared.wait_agent(trusted)
    assert shared.run_in(trusted, _BOOT_ID) == boot_id
    assert shared.run_in(trusted, _PCRS) == pcrs
    shared.kill()
    shared.start()
    shared.wait_agent(trusted)
    assert shared.run_in(trusted, _PCRS) == pcrs
    wait_facts(shared, trusted)
    check_invariants(shared)


@pytest.mark.slow
def test_a_vm_outlives_its_swtpm_and_starts_with_a_new_one(shared: LiveHost, trusted: str) -> None:
    mark = f"vm:{shared.vm(trusted).id}"
    (swtpm,) = shared.processes.find(owner=mark, role="swtpm")
    os.kill(swtpm.ref.pid, signal.SIGKILL)
    time.sleep(2)
    shared.run_in(trusted, "true")
    shared.call("POST", f"/v1/vms/{trusted}/kill")
    check_invariants(shared)
    shared.do("POST", f"/v1/vms/{trusted}/start")
    shared.wait_agent(trusted)
    verdict = attest(shared, trusted)
    assert verdict.verdict == "pass" and "baseline-matches" in {each.id for each in verdict.findings}, verdict


@pytest.mark.slow
def test_another_grub_that_is_signed_is_named_by_the_verdict(
    shared: LiveHost, trusted: str, tmp_path: Path
) -> None:
    shared.call("POST", f"/v1/vms/{trusted}/kill")
    esp = EspOf(shared.state.vm(trusted) / "disk0.qcow2", tmp_path)
    theirs = esp.read(GRUB)
    other = other_signed_grub()
    if other is None:
        pytest.skip("the host's archives hold no other GRUB that Debian signed")
    assert other != theirs
    esp.replace(GRUB, other)
    shared.do("POST", f"/v1/vms/{trusted}/start")
    shared.wait_agent(trusted)
    verdict = attest(shared, trusted)
    assert verdict.verdict == "fail" and verdict.attested, verdict
    found = failures(verdict)
    assert {id for id, _ in found} == {"boot-chain-changed"}, found
    assert any(text.startswith("GRUB (PCR 4, event") for _, text in found), found
    told = shared.call("GET", "/v1/events/recent", limit=1000, subject=trusted)
    changed = [each["data"] for each in told if each["kind"] == "trust.verdict-changed"]
    assert [each["verdict"] for each in changed] == ["pass", "fail"], changed
    with pytest.raises(OperationEndedBadly) as refused:
        shared.do("POST", f"/v1/vms/{trusted}/trust/release", {"name": "disk-key", "path": "/run/again"})
    (ended,) = refused.value.args
    assert ended.error["id"] == "verdict-failed" and ended.error["value"] == ["boot-chain-changed"], ended
    shared.run_in(trusted, "test ! -e /run/again")
    # Secure Boot itself refuses one whose signature does not fit, and the console says so.
    shared.call("POST", f"/v1/vms/{trusted}/kill")
    spoiled = bytearray(theirs)
    spoiled[len(spoiled) // 2] ^= 1
    esp.replace(GRUB, bytes(spoiled))
    shared.do("POST", f"/v1/vms/{trusted}/start")
    deadline = time.monotonic() + 120
    while "Security Violation" not in shared.console(trusted):
        assert time.monotonic() < deadline, shared.console(trusted)
        time.sleep(0.5)
    shared.call("POST", f"/v1/vms/{trusted}/kill")
    esp.replace(GRUB, theirs)


@pytest.mark.slow
def test_a_clone_is_trusted_for_itself(shared: LiveHost, trusted: str) -> None:
    shared.do("POST", f"/v1/vms/{trusted}/start")
    shared.wait_agent(trusted)
    assert attest(shared, trusted).verdict == "pass"
    machine_id = shared.run_in(trusted, "cat /etc/machine-id")
    before = shared.vm(trusted)
    shared.do("POST", f"/v1/vms/{trusted}/stop", timeout_seconds=300)
    check_invariants(shared)
    assert shared.vm(trusted).state is VmState.OFF
    shared.do("POST", f"/v1/vms/{trusted}/clone", {"name": "copy"})
    copy, path = shared.vm("copy"), Path("firmware/tpm/tpm2-00.permall")
    assert copy.id != before.id and copy.spec.nics[0].mac != before.spec.nics[0].mac
    assert digest(shared.state.vm("copy") / path) != digest(shared.state.vm(trusted) / path)
    shared.do("DELETE", f"/v1/vms/{trusted}")
    check_invariants(shared)
    shared.do("POST", "/v1/vms/copy/start")
    shared.wait_agent("copy")
    wait_facts(shared, "copy")
    view = shared.vm("copy")
    assert view.guest.secure_boot is True and view.guest.tpm_version == "2.0"
    shared.run_in("copy", "cloud-init status --wait >/dev/null || true", limit=240)
    assert shared.run_in("copy", "hostname").strip() == "copy"
    assert shared.run_in("copy", "cat /etc/machine-id") != machine_id
    enrolled = shared.call("GET", "/v1/vms/copy/trust")["enrolment"]
    assert attest(shared, "copy").verdict == "pass"
    assert shared.call("GET", "/v1/vms/copy/trust")["enrolment"] != enrolled is None
    shared.do("DELETE", "/v1/vms/copy", force="true")
    assert check_invariants(shared) == []
