"""The peer of the boot benchmark: the same QEMU command line, started by hand, without Holdfast.

The command line is read from a machine that Holdfast runs; only paths are changed, and the monitor
listens on a socket of its own. Disk, variable store, seed and TPM are prepared before the clock
starts, as somebody at a shell would have them lying ready.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from holdfast.host.processes import Marked


class ByHand:
    def __init__(self, marked: Marked, runtime: Path, folder: Path, work: Path) -> None:
        """`runtime` and `folder` are those of Holdfast's VM, whose arguments are taken.

        `work` has a folder `pristine` with the VM's files as they were before its first start.
        """
        self._work = work
        self._folder = work / "vm"
        self._pristine = work / "pristine"
        self._argv = [
            self._rewritten(part).replace(str(runtime), str(work)).replace(str(folder), str(self._folder))
            for part in marked.argv
        ]
        self._qemu: subprocess.Popen[bytes] | None = None
        self._swtpm: subprocess.Popen[bytes] | None = None

    def _rewritten(self, part: str) -> str:
        return re.sub(r"^(socket,id=monitor),fd=\d+", rf"\1,path={self._work}/qmp.sock", part)

    def prepare(self) -> None:
        """Fresh disk, variable store and TPM."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._pristine, self._folder)
        for path in self._work.glob("*.sock"):
            path.unlink()
        if not any("swtpm.sock" in part for part in self._argv):
            return
        tpm = self._work / "tpm"
        shutil.rmtree(tpm, ignore_errors=True)
        tpm.mkdir()
        setup = ["swtpm_setup", "--tpm2", "--tpmstate", f"dir://{tpm}", "--pcr-banks", "sha256"]
        subprocess.run(setup, check=True, capture_output=True)
        control = f"type=unixio,path={self._work}/swtpm.sock"
        self._swtpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tpm}", "--ctrl", control, "--terminate"]
        )
        _wait_for(self._work / "swtpm.sock")

    def boot(self, limit: float = 300.0) -> float:
        """Seconds from QEMU's start to the guest agent's first answer."""
        began = time.perf_counter()
        self._start([part for part in self._argv if part != "-S"])
        _wait_for(self._work / "agent.sock")
        while time.perf_counter() - began < limit:
            if _ping(self._work / "agent.sock"):
                return time.perf_counter() - began
        raise TimeoutError("the guest agent did not answer")

    def first_instruction(self) -> float:
        """Seconds from QEMU's start to its guest being set going over the monitor."""
        began = time.perf_counter()
        self._start(self._argv)
        _wait_for(self._work / "qmp.sock")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._work / "qmp.sock"))
            stream = monitor.makefile("rwb")
            stream.readline()
            for command in ("qmp_capabilities", "cont"):
                stream.write(json.dumps({"execute": command}).encode() + b"\n")
                stream.flush()
                while "return" not in json.loads(stream.readline()):
                    pass
            return time.perf_counter() - began

    def _start(self, argv: list[str]) -> None:
        with (self._work / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self) -> None:
        for process in (self._qemu, self._swtpm):
            if process is not None:
                process.kill()
                process.wait()
        self._qemu = self._swtpm = None


def _wait_for(path: Path) -> None:
    deadline = time.perf_counter() + 30
    while not path.exists():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{path} did not appear")
        time.sleep(0.002)


def _ping(path: Path) -> bool:
    """One synchronised ping, with a quarter of a second for the answer."""
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(0.25)
        try:
            agent.connect(str(path))
            token = time.monotonic_ns() % 2**31
            ask = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            agent.sendall(b"\xff" + json.dumps(ask).encode() + b"\n")
            said = b""
            while f'"return": {token}'.encode() not in said:
                chunk = agent.recv(4096)
                if not chunk:
                    return False
                said += chunk
        except OSError:
            return False
        return True
