"""A real daemon with a state folder of its own, as a test drives it: over its UNIX socket.

`kill` is kill -9. `close` ends everything that carries the folder's mark and says what was left.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.api.client import Client, DaemonNotReachable, Place
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Marked, Processes
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import VmState
from holdfast.spec.vm_view import VmView

_UP = 60.0


class OperationEndedBadly(AssertionError):
    """An operation that a test counted on failed; the operation is its argument."""


class LiveHost:
    def __init__(self, folder: Path, arguments: tuple[str, ...] = (), wrapper: tuple[str, ...] = ()) -> None:
        """`wrapper` is a command that runs the daemon's command."""
        # Sockets need a short path, and VMs' users one that they may pass; pytest's is neither.
        self._base = Path(tempfile.mkdtemp(prefix="hf-", dir="/tmp"))
        self._base.chmod(0o711)
        self.state = StateFolder(self._base / "state", self._base / "run")
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "daemon.log"
        self._arguments = arguments
        self._wrapper = wrapper
        self._daemon: subprocess.Popen[bytes] | None = None
        self.processes = Processes(self.state)

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def launch(self) -> None:
        """Start the daemon without waiting for it."""
        argv = [*self._wrapper, sys.executable, "-m", "holdfast", "serve"]
        argv += ["--state", str(self.state.root), "--runtime", str(self.state.runtime), *self._arguments]
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.launch()
        deadline = time.monotonic() + _UP
        while True:
            try:
                with self.client() as client:
                    client.wire("GET", "/v1/health")
                return
            except DaemonNotReachable:
                assert self._daemon is not None
                assert self._daemon.poll() is None, f"the daemon ended:\n{self.tail()}"
                assert time.monotonic() < deadline, f"the daemon does not answer:\n{self.tail()}"
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, and nothing else."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGKILL)
            self._daemon.wait()
            self._daemon = None

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._daemon is not None
        self._daemon.terminate()
        code = self._daemon.wait(30)
        self._daemon = None
        return code

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def client(self) -> Client:
        return Client(Place(socket=self.state.socket))

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        with self.client() as client:
            return client.wire(method, path, body, query or None)

    def do(self, method: str, path: str, body: Any = None, **query: Any) -> Operation:
        """A long verb, to its good end."""
        ended = self.end_of(Operation.model_validate(self.call(method, path, body, **query)))
        if ended.state is not OperationState.SUCCEEDED:
            raise OperationEndedBadly(ended)
        return ended

    def operation(self, id_: str) -> Operation:
        return Operation.model_validate(self.call("GET", f"/v1/operations/{id_}"))

    def end_of(self, operation: Operation, limit: float = 300.0) -> Operation:
        deadline = time.monotonic() + limit
        while True:
            found = self.operation(operation.id)
            if found.state.ended:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.03)

    def vm(self, name: str) -> VmView:
        return VmView.model_validate(self.call("GET", f"/v1/vms/{name}"))

    def run_in(self, name: str, script: str, limit: float = 60.0) -> str:
        """Output of a shell script in the guest; it must succeed."""
        body = {"argv": ["/bin/sh", "-c", script], "timeout_seconds": limit}
        result = self.call("POST", f"/v1/vms/{name}/exec", body)
        assert result["exit_code"] == 0, result
        return str(result["stdout"])

    def wait_agent(self, name: str, limit: float = 300.0) -> VmView:
        deadline = time.monotonic() + limit
        while True:
            view = self.vm(name)
            if view.guest.agent == "connected":
                return view
            assert view.state in (VmState.STARTING, VmState.RUNNING), (view, self.qemu_log(name))
            assert time.monotonic() < deadline, (view, self.console(name))
            time.sleep(0.1)

    def wait_state(self, name: str, state: VmState, limit: float = 60.0) -> VmView:
        deadline = time.monotonic() + limit
        while (view := self.vm(name)).state is not state:
            assert time.monotonic() < deadline, view
            time.sleep(0.05)
        return view

    def console(self, name: str) -> str:
        return (self.state.vm(name) / "console.log").read_text(errors="replace")[-3000:]

    def qemu_log(self, name: str) -> str:
        return (self.state.vm(name) / "qemu.log").read_text(errors="replace")[-3000:]

    def add_image(self, file: Path, name: str, kind: str | None = None) -> None:
        """Bring a file in as people do: upload, then import."""
        with self.client() as client:
            upload = client.upload(file)
        self.do("POST", "/v1/images/import", {"upload": upload.id, "name": name, "kind": kind})

    def qemus(self) -> list[Marked]:
        return self.processes.find(role="qemu")

    def close(self) -> None:
        self.kill()
        while left := self.processes.find():
            for marked in left:
                try:
                    os.kill(marked.ref.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        shutil.rmtree(self._base, ignore_errors=True)


@contextmanager
def live_host(folder: Path, *arguments: str) -> Iterator[LiveHost]:
    host = LiveHost(folder, arguments)
    try:
        host.start()
        yield host
    finally:
        host.close()
