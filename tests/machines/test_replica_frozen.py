"""kill -9 of the daemon while a guest's file systems are at rest for a point: the next one lets it write."""

import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_host import LiveHost, live_host
from small_guest import LOAD_EXT4, SmallGuest
from small_vms import small_vm, with_small_images
from test_replica import Pair, free_port

NAME = "writer"
_WRITES = f"""{LOAD_EXT4}
mke2fs /dev/vda >/dev/null && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt || exit 1
echo 'n=0; while :; do n=$((n + 1)); echo $n >/mnt/n; sync; echo $n >/run/n; done' >/run/write.sh
setsid sh /run/write.sh >/dev/null 2>&1 </dev/null &
"""
_THAWED_SECONDS = 5.0
"""That it may take until it writes again: QEMU's and the guest's own time-outs are far longer."""


def freezing(host: LiveHost) -> bool:
    with sqlite3.connect(f"file:{host.state.root}/catalog.sqlite?mode=ro", uri=True) as catalog:
        found = catalog.execute("SELECT json_extract(record, '$.freezing') FROM replications").fetchall()
    return found == [(1,)]


def agent(host: LiveHost, vm: str, command: str) -> Any:
    """Asked while no daemon is there."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(20.0)
        asked.connect(str(host.state.vm_runtime(vm) / "agent.sock"))
        lines = asked.makefile("rwb")
        number = time.monotonic_ns() >> 10
        sync = {"execute": "guest-sync", "arguments": {"id": number}}
        for each in (sync, {"execute": command}):
            lines.write(json.dumps(each).encode() + b"\n")
        lines.flush()
        while json.loads(lines.readline().lstrip(b"\xff")) != {"return": number}:
            pass
        return json.loads(lines.readline())["return"]


def writes(host: LiveHost) -> int:
    return int(host.run_in(NAME, "cat /run/n 2>/dev/null || echo 0"))


@pytest.fixture
def pair(tmp_path: Path, small: SmallGuest) -> Iterator[Pair]:
    port = free_port()
    with (
        live_host(tmp_path / "source") as source,
        live_host(tmp_path / "receiver", "--replica-listen", f"127.0.0.1:{port}") as receiver,
    ):
        with_small_images(source, small)
        source.do("POST", "/v1/vms", small_vm(NAME, small.append, start=True))
        token = receiver.call("POST", "/v1/replica/tokens", {})["token"]
        peer = {"name": "south", "address": f"https://127.0.0.1:{port}", "token": token, "own_name": "north"}
        source.call("POST", "/v1/replica/peers", peer)
        yield Pair(source, receiver, port)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_guest_that_is_left_frozen_writes_again_at_once(pair: Pair) -> None:
    source = pair.source
    source.wait_agent(NAME)
    source.run_in(NAME, _WRITES)
    vm = source.vm(NAME).id
    asked = {"peer": "south", "rpo_seconds": 1, "consistent_seconds": 1}
    source.call("POST", f"/v1/vms/{NAME}/replica", asked)
    pair.until("a point", lambda status: bool(status["points"]))
    pair.until("an application-consistent point", lambda _: "application" in pair.consistencies())
    for delay in (0.02, 0.05, 0.1, 0.0, 0.15, 0.2, 0.03, 0.08) * 2:
        deadline = time.monotonic() + 30
        while not freezing(source):
            assert time.monotonic() < deadline
        time.sleep(delay)
        source.kill()
        if agent(source, vm, "guest-fsfreeze-status") == "frozen":
            break
        source.start()
    else:
        pytest.fail("it was never killed in time")
    pair.receiver.kill()  # nothing can be sent, which is no reason to wait
    source.start()
    begun = time.monotonic()
    first = writes(source)
    while writes(source) <= first:
        assert time.monotonic() - begun < _THAWED_SECONDS
        time.sleep(0.1)
    print(f"it writes again {time.monotonic() - begun:.1f} s after the daemon has started")
