"""A TPM of its own for tests: the real swtpm on a UNIX socket, with an endorsement certificate.

tpm2-tools may speak to it too, while nobody else does: it serves one caller at a time.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from holdfast.trust.endorsement import EndorsementAuthority

NEEDED = ("swtpm", "swtpm_setup", "tpm2_checkquote")
_PATIENCE = 30.0


def have_tools() -> bool:
    return all(shutil.which(tool) for tool in NEEDED)


def manufacture(folder: Path, *options: str) -> Path:
    """Make the state of a TPM in `folder`/state; its authority's certificate is returned."""
    state, keys = folder / "state", folder / "keys"
    for each in (state, keys):
        each.mkdir(parents=True)
    config = EndorsementAuthority(keys).prepare(folder)
    argv = ["swtpm_setup", "--tpm2", "--tpmstate", f"dir://{state}", "--create-ek-cert", "--lock-nvram"]
    done = subprocess.run(
        [*argv, "--pcr-banks", "sha256", "--config", str(config), "--vmid", "test", *options],
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return keys / "vtpm-ca.pem"


class EmulatedTpm:
    def __init__(self, folder: Path) -> None:
        """`folder` is one that `manufacture` filled; its path must fit a UNIX socket."""
        self.folder = folder
        self.authority = folder / "keys" / "vtpm-ca.pem"
        self.socket = folder / "s"
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"swtpm:{self.socket}"

    def start(self) -> "EmulatedTpm":
        """As after a power-on: all PCRs as they begin."""
        mark = self.folder / "pid"
        mark.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'state'}"),
                *("--server", f"type=unixio,path={self.socket}", "--pid", f"file={mark}"),
                *("--ctrl", f"type=unixio,path={self.socket}.ctrl", "--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while not mark.exists():
            assert self._server.poll() is None and time.monotonic() < deadline, "swtpm did not start"
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait(_PATIENCE)
        for left in (self.socket, Path(f"{self.socket}.ctrl")):
            left.unlink(missing_ok=True)

    def reboot(self) -> None:
        self.stop()
        self.start()

    def tool(self, *argv: str, folder: Path, stdin: bytes | None = None) -> bytes:
        """Run one of tpm2-tools in `folder`; it must succeed."""
        environment = {**os.environ, "TPM2TOOLS_TCTI": self.address.replace("swtpm:", "swtpm:path=")}
        done = subprocess.run(argv, cwd=folder, env=environment, input=stdin, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
