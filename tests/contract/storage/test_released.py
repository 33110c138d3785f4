"""A disk whose QEMU has ended a moment ago: its locks are waited for."""

import subprocess
import sys
import time
from pathlib import Path

from storage_rooms import Rooms

from holdfast.host.file_locks import is_locked
from holdfast.spec.vm import Disk

HOLD = """
import fcntl, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 101, 1, 0))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    held = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert held.stdout and held.stdout.readline() == "held\n"
    return held


async def test_a_disk_is_waited_for_until_nobody_holds_it(rooms: Rooms) -> None:
    disk = Disk(id="disk0", volume="disk0", size=1 << 20)
    path = rooms.state.vm("web") / "disk0.qcow2"
    path.parent.mkdir()
    path.write_bytes(bytes(1024))
    assert not is_locked(path) and not is_locked(path.with_name("other"))
    with hold(path, 0.5) as held:
        assert is_locked(path)
        await rooms.volumes.released("web", [disk])
        assert not is_locked(path)
        held.wait()
    with hold(path, 60) as held:
        began = time.monotonic()
        await rooms.volumes.released("web", [disk], limit=0.3)
        assert is_locked(path) and 0.2 < time.monotonic() - began < 20
        held.kill()
