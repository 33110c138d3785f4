"""A receiving host whose power is lost: all that it acknowledged is there, and nothing is copied anew.

All of the daemon's state, its catalog too, lies in a file system whose unsynced writes are dropped.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_host import LiveHost, live_host
from loop_files import LoopFile
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images
from test_checkpoint_crash import NAME
from test_failover import on_disk
from test_replica import Pair, free_port

_SIZE = 4 << 30
_LATE = "commit=600"
"""Seconds after which ext4 commits by itself."""


@dataclass
class Host:
    daemon: LiveHost
    disk: LoopFile

    def lose_power(self) -> None:
        self.daemon.kill()
        for marked in self.daemon.processes.find():
            os.kill(marked.ref.pid, signal.SIGKILL)
        while self.daemon.processes.find():
            time.sleep(0.01)
        self.disk.lose_power()


@contextmanager
def host_with_power(folder: Path, *arguments: str) -> Iterator[Host]:
    folder.mkdir()
    daemon = LiveHost(folder, arguments)
    root = daemon.state.root
    root.mkdir(parents=True)
    disk = LoopFile(folder / "state.img", root, (_LATE,))
    disk.file.touch()
    os.truncate(disk.file, _SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", disk.file], check=True)
    disk.mount(_LATE)
    (root / "lost+found").rmdir()
    root.chmod(0o711)
    try:
        daemon.start()
        yield Host(daemon, disk)
    finally:
        daemon.kill()
        for marked in daemon.processes.find():
            os.kill(marked.ref.pid, signal.SIGKILL)
        disk.unmount()
        daemon.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_receiver_acknowledged_outlives_its_power(tmp_path: Path, small: SmallGuest) -> None:
    chance = random.Random(int(os.environ.get("HOLDFAST_SEED", "6")))
    port = free_port()
    with ExitStack() as opened:
        source = opened.enter_context(live_host(tmp_path / "source"))
        listen = ("--replica-listen", f"127.0.0.1:{port}")
        south = opened.enter_context(host_with_power(tmp_path / "receiver", *listen))
        with_small_images(source, small)
        with_small_images(south.daemon, small)
        disks = [{"size": "16MiB"}, {"size": "16MiB"}]
        source.do("POST", "/v1/vms", small_vm(NAME, small.append, disks=disks))
        token = south.daemon.call("POST", "/v1/replica/tokens", {})["token"]
        address = f"https://127.0.0.1:{port}"
        peer = {"name": "south", "address": address, "token": token, "own_name": "north"}
        source.call("POST", "/v1/replica/peers", peer)
        south.lose_power()  # it is paired, and remembers that
        south.daemon.start()
        pair = Pair(source, south.daemon, port)
        pair.run_guest()
        source.call("POST", f"/v1/vms/{NAME}/replica", {"peer": "south", "rpo_seconds": 1})
        pair.until("the initial copy", lambda status: bool(status["points"]))
        for _ in range(2):
            pair.until_new_points(2)
            time.sleep(chance.uniform(0, 1.5))
            _, before = pair.newest()
            south.lose_power()
            south.daemon.start()
            _, after = pair.newest()
            assert after >= before
            pair.until_new_points(1)
        assert pair.status()["full_copies"] == 0
        assert pair.compared() == 0  # what was acknowledged was there, so its changes were enough
        written = pair.written()
        pair.until_new_points(2)

        # A failover that was answered for is one, whatever happens to the host then.
        source.kill()
        for marked in source.qemus():
            os.kill(marked.ref.pid, signal.SIGKILL)
        south.daemon.do("POST", f"/v1/replica/held/{NAME}/failover", {"commit": True})
        south.lose_power()
        south.daemon.start()
        (turn,) = south.daemon.call("GET", "/v1/replica/turns")
        assert turn["turn"] == "primary"
        deadline = time.monotonic() + 60
        while south.daemon.call("GET", "/v1/replica/held"):  # until it stands on its own
            assert time.monotonic() < deadline, south.daemon.tail()
            time.sleep(0.1)
        south.daemon.do("POST", f"/v1/vms/{NAME}/start")
        south.daemon.wait_agent(NAME)
        assert on_disk(south.daemon) >= written
