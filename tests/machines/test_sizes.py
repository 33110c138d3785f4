"""Processors, memory and discs given to a guest that runs and taken back, seen from inside it."""

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants
from live_host import LiveHost
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState

NAME = "sizes"
_SETTLED = 30.0
NO_DISC = hashlib.sha256(b"").hexdigest()


def change(host: LiveHost, **wanted: object) -> dict[str, Any]:
    found: dict[str, Any] = host.call("PATCH", f"/v1/vms/{NAME}", wanted)
    return found


def cpus(host: LiveHost) -> int:
    return int(host.run_in(NAME, "grep -c ^processor /proc/cpuinfo"))


def memory(host: LiveHost) -> int:
    """MiB that the guest's kernel manages."""
    return int(host.run_in(NAME, "grep MemTotal /proc/meminfo").split()[1]) // 1024


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SETTLED
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def cd(host: LiveHost) -> str:
    """Digest of the beginning of what is in the guest's drive."""
    return host.run_in(NAME, "dd if=/dev/sr1 bs=2048 count=32 2>/dev/null | sha256sum").split()[0]


def host_disc(host: LiveHost, folder: Path) -> str:
    """Bring an ISO image into the host; returns what `cd` says of it."""
    (folder / "files").mkdir()
    (folder / "files" / "mark").write_text("here")
    iso = folder / "disc.iso"
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", iso, folder / "files"], check=True)
    host.add_image(iso, "disc")
    return hashlib.sha256(iso.read_bytes()[: 32 * 2048]).hexdigest()


def test_sizes_and_a_drive_come_and_go(host: LiveHost, small: SmallGuest, tmp_path: Path) -> None:
    host.do(
        "POST", "/v1/vms", small_vm(NAME, small.append, memory="512MiB", cloud_init={"user": "x"}, start=True)
    )
    host.wait_agent(NAME)
    base = memory(host)
    grown = change(host, cpus=2, memory="768MiB")
    assert (grown["pending"], grown["waits"]) == ({}, {}), grown
    assert cpus(host) == 2
    until(lambda: memory(host) > base + 200)

    # A CD drive beside the seed's, with its disc.
    assert "cidata" in host.run_in(NAME, "dd if=/dev/sr0 bs=2048 skip=16 count=1 2>/dev/null | strings")
    disc = host_disc(host, tmp_path)
    assert change(host, iso="disc")["pending"] == {}
    until(lambda: cd(host) == disc)

    # A device of the host that is not there changes nothing.
    for method, path, body, why in (
        ("POST", "usb", {"device": "ffff:fffe"}, "usb-device-not-found"),
        ("DELETE", "usb/usb0", None, "usb-not-found"),
    ):
        with pytest.raises(HoldfastError) as refusal:
            host.call(method, f"/v1/vms/{NAME}/{path}", body)
        assert refusal.value.as_dict()["id"] == why
    assert host.call("GET", f"/v1/vms/{NAME}/usb") == [] and host.vm(NAME).pending == {}

    # Saved and started again: the same processors, the same pieces of memory, the same disc.
    host.do("POST", f"/v1/vms/{NAME}/save")
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert cpus(host) == 2 and memory(host) > base + 200
    assert cd(host) == disc
    change(host, iso="")
    assert cd(host) == NO_DISC and host.vm(NAME).pending == {}
    change(host, iso="disc")
    until(lambda: cd(host) == disc)

    # More than there is room for waits for the next start, and says why.
    waits = change(host, cpus=64)
    assert waits["pending"] == {"cpus": 64} and "room for 8 CPUs" in waits["waits"]["cpus"]
    smaller = change(host, cpus=1)
    if smaller["pending"]:  # a guest may keep a processor: then it is said
        assert smaller["waits"]["cpus"] == "the guest has not let go of its CPUs"
    else:
        assert cpus(host) == 1

    # What was added is the memory of the next start; a machine that is off has any size.
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.wait_state(NAME, VmState.OFF)
    assert change(host, memory="640MiB")["memory"] == 640 << 20
    host.do("POST", f"/v1/vms/{NAME}/start")
    host.wait_agent(NAME)
    assert abs(memory(host) - base - 128) < 32 and cpus(host) == 1
    host.call("POST", f"/v1/vms/{NAME}/kill")
    host.wait_state(NAME, VmState.OFF)
    check_invariants(host)
