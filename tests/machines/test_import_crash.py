"""kill -9 of the daemon anywhere in an import that brings firmware state along.

Afterwards the import has gone on to its end or was undone whole: there is never a VM without its firmware
state, nor state, disks or keys without a VM.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants, wait_quiet
from live_host import LiveHost, live_host

from holdfast.cli.import_sources import sources_at
from holdfast.cli.importing import hand_over
from holdfast.spec.errors import HoldfastError

PASSPHRASE = "five plain words for this"
NAME = "web"
DISKS = ("disk0", "disk1")
MIB = 1 << 20
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Taken:
    """A VM that was taken away from a host."""

    path: Path
    id: str
    firmware: list[bytes]
    disks: dict[str, Path]
    """Raw copies."""


def firmware(host: LiveHost) -> list[bytes]:
    folder = host.state.vm(NAME) / "firmware"
    return [(folder / each).read_bytes() for each in ("variables.fd", "tpm/tpm2-00.permall")]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("import-crash")) as running:
        yield running


@pytest.fixture(scope="module")
def taken(host: LiveHost, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """Exported with its firmware state, and gone from the host."""
    folder = tmp_path_factory.mktemp("taken")
    disks = [{"size": "24MiB"}, {"size": "8MiB"}]
    host.do("POST", "/v1/vms", {"name": NAME, "memory": "256MiB", "disks": disks, "nics": []})
    raws = {}
    for seed, disk in enumerate(DISKS):
        raws[disk], volume = folder / f"{disk}.raw", host.state.vm(NAME) / f"{disk}.qcow2"
        (folder / "data").write_bytes(random.Random(seed).randbytes(6 * MIB))
        write = ["-c", f"write -s {folder / 'data'} 1M 6M"]
        subprocess.run(["qemu-io", "-f", "qcow2", *write, volume], check=True, capture_output=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", volume, raws[disk]], check=True)
    secret = folder / "secret"
    secret.write_text(PASSPHRASE)
    path = folder / "web.ova"
    argv = [sys.executable, "-m", "holdfast", "vm", "export", NAME, "--to", path]
    argv += ["--with-firmware-state", "--passphrase-file", secret]
    subprocess.run(
        argv, env={**os.environ, "HOLDFAST_SOCKET": str(host.state.socket)}, check=True, capture_output=True
    )
    made = Taken(path, host.vm(NAME).id, firmware(host), raws)
    host.do("DELETE", f"/v1/vms/{NAME}")
    return made


class Asking(threading.Thread):
    """Asks for the import; the daemon may die before it answers."""

    def __init__(self, host: LiveHost, taken: Taken) -> None:
        super().__init__(name="asking")
        self._host, self._taken = host, taken
        self.operation: str | None = None

    def run(self) -> None:
        try:
            with self._host.client() as client:
                files = hand_over(client, sources_at(self._taken.path, [])[0])
                body: dict[str, Any] = {"files": files, "passphrase": PASSPHRASE}
                self.operation = client.wire("POST", "/v1/imports", body)["id"]
        except (HoldfastError, OSError):
            pass  # it went away


def killed_when(host: LiveHost, taken: Taken, reached: Callable[[Asking, float], bool]) -> None:
    """kill -9 at a moment of an import, and a new daemon."""
    asking, began = Asking(host, taken), time.monotonic()
    asking.start()
    while not reached(asking, time.monotonic() - began):
        assert time.monotonic() - began < 60, host.tail()
        time.sleep(0.001)
    host.kill()
    asking.join()
    host.start()


def whole_or_gone(host: LiveHost, taken: Taken) -> bool:
    """Whether the VM is there; it is removed again."""
    wait_quiet(host)
    items = check_invariants(host)
    if not items:
        return False
    assert [each["name"] for each in items] == [NAME] and host.vm(NAME).id == taken.id
    assert firmware(host) == taken.firmware
    for disk, raw in taken.disks.items():
        volume = host.state.vm(NAME) / f"{disk}.qcow2"
        subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, volume], check=True)
    host.do("DELETE", f"/v1/vms/{NAME}")
    assert check_invariants(host) == []
    return True


def at_hand(pattern: str) -> Callable[[LiveHost], bool]:
    return lambda host: any(host.state.root.glob(pattern))


MOMENTS: dict[str, Callable[[LiveHost], bool]] = {
    "the state is kept, and no VM recorded": at_hand("scratch/import-*"),
    "the state is being put": at_hand(f"vms/{NAME}/firmware*/*"),
    "a disk is being copied": at_hand(f"vms/{NAME}/.disk?.qcow2.part"),
    "a disk is whole": at_hand(f"vms/{NAME}/disk?.qcow2"),
}


def test_an_import_killed_anywhere_is_whole_or_gone(host: LiveHost, taken: Taken) -> None:
    done = {}
    for moment, reached in MOMENTS.items():
        killed_when(host, taken, lambda _, __, reached=reached: reached(host))
        done[moment] = whole_or_gone(host, taken)
    # Before it is recorded nobody can go on with it; from then on nobody has to begin it anew.
    assert all(list(done.values())[1:]), done


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_import_killed_at_random_is_whole_or_gone(host: LiveHost, taken: Taken) -> None:
    """Also again while it goes on, and while it is undone because someone cancels it."""
    chance = random.Random(seed := time.time_ns())
    done = {True: 0, False: 0}
    for _ in range(60):
        moment = chance.random() * 2.5
        killed_when(host, taken, lambda asking, passed, at=moment: passed > at)
        for _ in range(chance.choice((0, 0, 1, 2))):
            if chance.random() < 0.5:
                for each in host.call("GET", "/v1/operations", running="true")["items"]:
                    host.call("POST", f"/v1/operations/{each['id']}/cancel")
            time.sleep(chance.random())
            host.kill()
            host.start()
        done[whole_or_gone(host, taken)] += 1
    assert all(done.values()), (done, seed)
