"""VMs' folders with real TPMs in them, looked at offline by tpm2-tools."""

import asyncio
import os
import time
from pathlib import Path

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.ids import new_id
from holdfast.trust import state_key
from holdfast.trust.firmware_state import FirmwareStates
from holdfast.trust.host_key import HostKeys
from holdfast.trust.vtpm import Vtpm

SECRET = b"a-secret-that-must-not-lie-open!"
IDENTITY = Identity(54321, 54321) if os.geteuid() == 0 else None


class Bench:
    def __init__(self, state: StateFolder) -> None:
        self.state = state
        self.processes = Processes(state)
        self.keys = HostKeys(state.keys)
        self.vtpm = Vtpm(self.processes, state, self.keys)
        self.firmware = FirmwareStates(self.vtpm, self.keys)
        self.id = new_id()
        self.folder = self.make("one")
        self.runtime = state.vm_runtime(self.id)
        self.runtime.mkdir(parents=True)

    def make(self, name: str) -> Path:
        folder = self.state.vm(name)
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)
        return folder

    async def tool(self, *argv: str, stdin: bytes | None = None) -> bytes:
        """Run a tpm2 tool against a plain server on the VM's state, as an offline look at it."""
        key = self.runtime / "h.key"
        ring = await self.keys.ring()
        key.write_text(state_key.load(self.folder / "firmware", self.id, ring).hex())
        path = self.runtime / "h.s"
        server = await self.processes.spawn(
            [
                *("swtpm", "socket", "--tpm2", "--pid", f"file={path}.pid", "--tpmstate"),
                f"dir={self.folder / 'firmware' / 'tpm'}",
                *("--key", f"file={key},mode=aes-256-cbc,format=hex,remove=false"),
                *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            owner="host",
            role="bench",
            log=self.runtime / "log",
        )
        try:
            deadline = time.monotonic() + 20
            while not Path(f"{path}.pid").exists():
                assert time.monotonic() < deadline and self.processes.alive(server)
                await asyncio.sleep(0.02)
            done = await self.processes.run(
                argv, owner="host", stdin=stdin, timeout=60, env={"TPM2TOOLS_TCTI": f"swtpm:path={path}"}
            )
            assert done.returncode == 0, done.stderr
            return done.stdout
        finally:
            await self.processes.end(server)
            for left in (key, path, Path(f"{path}.ctrl"), Path(f"{path}.pid")):
                left.unlink(missing_ok=True)


def permall(folder: Path) -> bytes:
    return (folder / "firmware" / "tpm" / "tpm2-00.permall").read_bytes()
