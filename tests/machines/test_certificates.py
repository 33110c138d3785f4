"""Secure Boot's certificates of real VMs: judged, changed, rolled back, through every kind of end.

Only the tests marked slow start guests; what they must refuse is read from the guest's console.
"""

import base64
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boot_disks import boot_disk, boot_programs
from debian_guest import debian_vm, with_debian
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.host.firmware import find_firmware
from holdfast.spec.errors import RemoteError
from holdfast.spec.vm import VmState
from holdfast.trust.authenticode import examine
from holdfast.trust.signature_lists import SHA256, Signature, encode_lists
from holdfast.trust.variables import read_inventory

UEFI_2011, UEFI_2023 = "Microsoft Corporation UEFI CA 2011", "Microsoft UEFI CA 2023"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    folder = tmp_path_factory.mktemp("certificates")
    programs = boot_programs()
    with live_host(folder) as running:
        chain = {"EFI/BOOT/BOOTX64.EFI": programs["shim"], "EFI/BOOT/grubx64.efi": programs["grub"]}
        running.add_image(boot_disk(folder / "signed.raw", chain), "signed", "disk")
        alone = {"EFI/BOOT/BOOTX64.EFI": programs["unsigned"]}
        running.add_image(boot_disk(folder / "unsigned.raw", alone), "unsigned", "disk")
        yield running


def store_of_2011() -> bytes:
    """The distribution's own store with keys: Debian's PK, Microsoft's certificates of 2011."""
    for build in find_firmware():
        if build.enrolled_keys and build.secure_boot and build.template_format == "raw":
            return build.template.read_bytes()
    pytest.skip("ovmf is not installed")


def make_vm(host: LiveHost, name: str, image: str = "signed", store: bytes | None = None) -> Path:
    """A VM that is off; the path of its store, which is `store` where that is given."""
    body = {"name": name, "cpus": 1, "memory": "512MiB", "disks": [{"image": image, "size": "1GiB"}]}
    host.do("POST", "/v1/vms", body)
    return put_store(host, name, store)


def put_store(host: LiveHost, name: str, store: bytes | None) -> Path:
    path = host.state.vm(name) / "firmware/variables.fd"
    if store is not None:
        with path.open("r+b") as file:  # its owner and mode stay
            file.write(store)
    return path


def certs(host: LiveHost, name: str) -> Any:
    return host.call("GET", f"/v1/vms/{name}/certs")


def update(host: LiveHost, *names: str, **more: Any) -> Any:
    return host.do("POST", "/v1/certs/update", {"vms": names, **more}).result["vms"]


def revoke(*images: bytes) -> str:
    """A revocation list of these images, as a request carries it."""
    import uuid

    entries = [Signature(SHA256, uuid.UUID(int=1), bytes.fromhex(examine(each).sha256)) for each in images]
    return base64.b64encode(encode_lists(entries)).decode()


def test_a_new_vm_has_both_generations(shared: LiveHost) -> None:
    make_vm(shared, "new")
    found = certs(shared, "new")
    assert found["status"] == "ready" and found["missing"] == []
    assert found["loader_signers"] == [UEFI_2011, UEFI_2023]
    assert found["loader"]["path"] == "\\EFI\\BOOT\\BOOTX64.EFI" and found["loader"]["standing"] == "accepted"
    (listed,) = [each for each in shared.call("GET", "/v1/certs")["items"] if each["vm"] == "new"]
    assert listed == found


def test_a_store_of_2011_is_updated_and_rolled_back(shared: LiveHost) -> None:
    path = make_vm(shared, "old", store=store_of_2011())
    before, owner = read_inventory(path), path.stat().st_uid
    assert certs(shared, "old")["status"] == "update-available"
    (plan,) = shared.call("POST", "/v1/certs/plan", {"vms": ["old"]})["items"]
    assert plan["when"] == "now" and plan["loader_after"] == "accepted" and "PCR 7" in plan["notices"][0]
    assert [(step["action"], step["variable"], step["what"]) for step in plan["steps"]] == [
        ("add", "db", "Windows UEFI CA 2023"),
        ("add", "db", "Microsoft UEFI CA 2023"),
        ("add", "db", "Microsoft Option ROM UEFI CA 2023"),
        ("add", "KEK", "Microsoft Corporation KEK 2K CA 2023"),
    ]
    assert read_inventory(path) == before
    done = shared.do("POST", "/v1/certs/update", {"vms": ["old"]}).result
    assert done and done["vms"] == [{"vm": "old", "outcome": "changed", "reason": ""}]
    assert "PCR 7" in done["notices"][0]
    assert certs(shared, "old")["status"] == "ready"
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (owner, 0o600)
    assert path.stat().st_size == len(store_of_2011())
    assert [each["reason"] for each in update(shared, "new", all=False)] == ["There is nothing to do."]
    shared.do("POST", "/v1/vms/old/certs/rollback")
    assert read_inventory(path).databases == before.databases
    # What was rolled back is kept in turn.
    shared.do("POST", "/v1/vms/old/certs/rollback")
    assert certs(shared, "old")["status"] == "ready"
    check_invariants(shared)


def test_what_would_not_boot_is_refused_with_the_reason(shared: LiveHost) -> None:
    path = make_vm(shared, "bad", "unsigned", store_of_2011())
    assert certs(shared, "bad")["status"] == "would-not-boot"
    with pytest.raises(RemoteError) as refused:
        update(shared, "bad")
    assert refused.value.wire_id == "would-not-boot" and "unsigned" in refused.value.message
    before = path.read_bytes()
    outcomes = {each["vm"]: each["outcome"] for each in update(shared, all=True)}
    assert outcomes["bad"] == "left-alone" and path.read_bytes() == before


@pytest.mark.parametrize("program", ["shim", "grub"])
def test_a_loader_is_not_revoked_under_a_vm(shared: LiveHost, program: str) -> None:
    """Shim asks dbx about GRUB as well."""
    name = f"revoked-{program}"
    path = make_vm(shared, name)
    before = path.read_bytes()
    dbx = revoke(boot_programs()[program].read_bytes())
    with pytest.raises(RemoteError) as refused:
        update(shared, name, dbx=dbx)
    assert refused.value.wire_id == "would-not-boot" and path.read_bytes() == before
    (plan,) = shared.call("POST", "/v1/certs/plan", {"vms": [name], "dbx": dbx})["items"]
    assert plan["when"] == "never" and "revoked" in plan["reason"]
    assert [each["outcome"] for each in update(shared, name, dbx=dbx, force=True)] == ["changed"]
    assert certs(shared, name)["status"] == "would-not-boot"
    shared.do("POST", f"/v1/vms/{name}/certs/rollback")
    assert certs(shared, name)["status"] == "ready"


def test_a_foreign_platform_key_is_left_alone(shared: LiveHost) -> None:
    snakeoil = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
    if not snakeoil.exists():
        pytest.skip("the package ovmf has no store with a key of nobody")
    make_vm(shared, "foreign", store=snakeoil.read_bytes())
    assert certs(shared, "foreign")["status"] == "foreign-pk"
    with pytest.raises(RemoteError) as refused:
        update(shared, "foreign")
    assert refused.value.wire_id == "foreign-platform-key"
    assert "foreign" not in [each["vm"] for each in update(shared, all=True) if each["outcome"] == "changed"]


def test_ones_own_keys(shared: LiveHost, tmp_path: Path) -> None:
    path = make_vm(shared, "own")
    pem = base64.b64encode(own_certificate()).decode()
    with pytest.raises(RemoteError) as refused:
        shared.do("POST", "/v1/vms/own/certs/enrol", {"db": [pem], "replace": True})
    assert refused.value.wire_id == "would-not-boot"  # Shim is not signed by it
    shared.do("POST", "/v1/vms/own/certs/enrol", {"pk": pem, "kek": [pem], "db": [pem]})
    found = read_inventory(path)
    assert found.secure_boot
    assert [each.name for each in found.databases["PK"].certificates] == ["A key of one's own"]
    assert "A key of one's own" in [each.name for each in found.databases["db"].certificates]
    assert certs(shared, "own")["status"] == "foreign-pk"
    shared.do("POST", "/v1/vms/own/certs/rollback")
    assert certs(shared, "own")["status"] == "ready"
    with pytest.raises(RemoteError) as refused:
        shared.call("POST", "/v1/vms/own/certs/enrol", {"db": [base64.b64encode(b"junk").decode()]})
    assert refused.value.wire_id == "not-a-certificate"


def own_certificate() -> bytes:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A key of one's own")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.timeout(180)
def test_a_killed_daemon_leaves_one_store_or_the_other(shared: LiveHost) -> None:
    old = store_of_2011()
    path = make_vm(shared, "killed", store=old)
    before = read_inventory(path).databases
    update(shared, "killed")
    after = read_inventory(path).databases
    times = random.Random(3)
    for _ in range(4):
        put_store(shared, "killed", old)
        shared.call("POST", "/v1/certs/update", {"vms": ["killed"]})
        time.sleep(times.uniform(0, 0.6))
        shared.kill()
        assert read_inventory(path).databases in (before, after)
        shared.start()
        check_invariants(shared)
        assert read_inventory(path).databases == after
        kept = path.with_name("variables.previous.fd")
        assert read_inventory(kept).databases == before
        assert not certs(shared, "killed")["pending"]


def wait_console(host: LiveHost, name: str, text: str, limit: float = 150.0) -> None:
    deadline = time.monotonic() + limit
    while text not in host.console(name):
        assert host.vm(name).state is VmState.RUNNING
        assert time.monotonic() < deadline, host.console(name)
        time.sleep(0.2)


@pytest.mark.timeout(240)
def test_after_an_update_firmware_still_refuses_unsigned_and_revoked_loaders(shared: LiveHost) -> None:
    """Both side by side: a loader that nobody signed, and Debian's own Shim, revoked by its digest."""
    make_vm(shared, "refused", "unsigned", store_of_2011())
    make_vm(shared, "denied", store=store_of_2011())
    update(shared, "refused", force=True)
    shim = boot_programs()["shim"].read_bytes()
    update(shared, "denied", dbx=revoke(shim), force=True)
    assert certs(shared, "denied")["revoked_images"] == 2  # and the one that matches nothing
    for name in ("refused", "denied"):
        assert certs(shared, name)["missing"] == []
        shared.do("POST", f"/v1/vms/{name}/start")
    for name in ("refused", "denied"):
        wait_console(shared, name, "Access Denied")
        shared.call("POST", f"/v1/vms/{name}/kill")
    check_invariants(shared)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_debian_guest_of_2011_is_updated_while_it_runs_and_boots_with_both(shared: LiveHost) -> None:
    with_debian(shared)
    name = "debian"
    shared.do("POST", "/v1/vms", debian_vm(name, start=False))
    path = put_store(shared, name, store_of_2011())
    found = certs(shared, name)
    assert (found["status"], found["loader_signers"]) == ("update-available", [UEFI_2011, UEFI_2023])
    shared.do("POST", f"/v1/vms/{name}/start")
    wait_secure_boot(shared, name)
    register = "cat /sys/class/tpm/tpm0/pcr-sha256/7"
    measured = shared.run_in(name, register)
    assert certs(shared, name)["loader"]["sha256"] == found["loader"]["sha256"]  # read while it runs
    assert update(shared, name) == [{"vm": name, "outcome": "at-next-start", "reason": ""}]
    assert certs(shared, name)["pending"] and certs(shared, name)["status"] == "update-available"
    shared.kill()
    shared.start()
    # Saved memory brings its own copy of the store along: a restore is no start that changes keys.
    shared.do("POST", f"/v1/vms/{name}/save")
    (plan,) = shared.call("POST", "/v1/certs/plan", {"vms": [name]})["items"]
    assert plan["when"] == "next-start" and "saved memory" in " ".join(plan["notices"])
    shared.do("POST", f"/v1/vms/{name}/start")
    shared.wait_agent(name)
    assert certs(shared, name)["pending"] and certs(shared, name)["status"] == "update-available"
    shared.do("POST", f"/v1/vms/{name}/restart", timeout_seconds=300)
    keys = read_inventory(path).databases
    assert UEFI_2023 in [each.name for each in keys["db"].certificates]
    assert certs(shared, name)["status"] == "ready" and not certs(shared, name)["pending"]
    wait_secure_boot(shared, name)
    assert shared.run_in(name, register) != measured
    events = [each["kind"] for each in shared.call("GET", "/v1/events/recent", subject=name, limit=1000)]
    assert events.count("vm.certificates-recorded") == events.count("vm.certificates-changed") == 1
    # The guest has written to its store since: a rollback takes back the keys and nothing else.
    shared.do("POST", f"/v1/vms/{name}/stop", timeout_seconds=300)
    shared.do("POST", f"/v1/vms/{name}/certs/rollback")
    assert certs(shared, name)["status"] == "update-available"
    shared.do("POST", f"/v1/vms/{name}/start")
    wait_secure_boot(shared, name)
    assert shared.run_in(name, register) == measured
    shared.call("POST", f"/v1/vms/{name}/kill")
    check_invariants(shared)


def wait_secure_boot(host: LiveHost, name: str) -> None:
    """Until the guest itself has said that Secure Boot is on."""
    host.wait_agent(name)
    deadline = time.monotonic() + 90
    while host.vm(name).guest.secure_boot is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert host.vm(name).guest.secure_boot is True
