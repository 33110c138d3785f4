"""Real QEMU accepts every example machine: it parses all of it and builds all of it, stopped.

HOLDFAST_TEST_QEMU names other binaries with their options and machine type, one a line, such as
`pc-q35-7.2 /opt/qemu-7.2/qemu-system-x86_64 -L /opt/qemu-7.2/share`.
"""

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from example_machines import MACHINE_TYPE, OVMF, machines

from holdfast.machine.plan import MachineInputs, PlainQemu, arguments
from holdfast.spec.attachment import FilePlace, WindowPlace

QEMU, SWTPM = shutil.which("qemu-system-x86_64"), shutil.which("swtpm")
NAMES = list(machines(Path("/a"), Path("/b")))
SECONDS = 60

pytestmark = pytest.mark.skipif(QEMU is None or shutil.which("qemu-img") is None, reason="needs QEMU")


@dataclass(frozen=True)
class Binary:
    argv: tuple[str, ...]
    machine_type: str


def _binaries() -> list[Binary]:
    found = [Binary((QEMU or "",), MACHINE_TYPE)]
    for line in os.environ.get("HOLDFAST_TEST_QEMU", "").splitlines():
        machine_type, *argv = shlex.split(line)
        found.append(Binary(tuple(argv), machine_type))
    return found


@pytest.fixture(params=_binaries(), ids=lambda binary: binary.machine_type)
def binary(request: pytest.FixtureRequest) -> Binary:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def runtime() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf") as folder:  # short: it holds sockets
        yield Path(folder)


def _kernel() -> bytes:
    """As much of a kernel as QEMU looks at (Linux, Documentation/arch/x86/boot.rst)."""
    image = bytearray(1 << 20)
    image[0x1F1] = 4  # setup sectors
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x020C).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")  # the highest address of the initrd
    return bytes(image)


def _prepare(inputs: MachineInputs) -> None:
    """The files that the machine names, small."""
    layers = [layer for disk in inputs.disks for layer in disk.layers]
    for layer in layers:
        place = layer.place
        assert isinstance(place, FilePlace | WindowPlace)
        made = place.path.with_suffix(".made") if isinstance(place, WindowPlace) else place.path
        subprocess.run(["qemu-img", "create", "-q", "-f", layer.format, made, "16M"], check=True)
        if isinstance(place, WindowPlace):
            with place.path.open("r+b" if place.path.exists() else "w+b") as file:
                file.seek(place.offset)
                file.write(made.read_bytes())
    for path in (*(cd.path for cd in inputs.cds), inputs.initrd):
        if path:
            path.write_bytes(bytes(1 << 20))
    if inputs.kernel:
        inputs.kernel.write_bytes(_kernel())
    if inputs.firmware:
        if not OVMF.exists():
            pytest.skip("needs OVMF")
        shutil.copyfile(OVMF.with_name("OVMF_VARS_4M.ms.fd"), inputs.firmware.variables)


@contextmanager
def _swtpm(inputs: MachineInputs, folder: Path) -> Iterator[MachineInputs]:
    """The machine with its TPM, or without where there is no swtpm."""
    if not inputs.tpm or not SWTPM:
        yield replace(inputs, tpm=None)
        return
    state, pid = folder / "tpm", folder / "swtpm.pid"
    state.mkdir()
    options = ["--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={inputs.tpm.socket}"]
    # As a daemon it returns when its socket listens.
    subprocess.run(
        [SWTPM, "socket", "--tpm2", "--daemon", "--pid", f"file={pid}", "--terminate", *options], check=True
    )
    number = int(pid.read_text())
    try:
        yield inputs
    finally:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)


async def _started(binary: Binary, inputs: MachineInputs, qemu: PlainQemu) -> tuple[dict[str, Any], str, int]:
    """What QEMU answers on its monitor, what it says, and how it ends by SIGTERM."""
    listener = socket.socket(socket.AF_UNIX)
    path = inputs.runtime / "qmp.sock"
    listener.bind(str(path))
    listener.listen(1)
    placed = replace(inputs, machine_type=binary.machine_type, monitor_fd=listener.fileno())
    process = await asyncio.create_subprocess_exec(
        *binary.argv,
        *arguments(placed, qemu),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(listener.fileno(),),
    )
    listener.close()
    answers: dict[str, Any] = {}
    try:
        async with asyncio.timeout(SECONDS):
            with suppress(OSError, ValueError):  # it ended early: what it said tells why
                answers = await _asked(path)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        said = (await asyncio.wait_for(process.communicate(), SECONDS))[0].decode()
    wanted = ("terminating on signal 15", "is not connected to host network")  # the latter of unplugged cards
    lines = [line for line in said.splitlines() if not any(each in line for each in wanted)]
    return answers, "\n".join(lines), process.returncode or 0


async def _asked(path: Path) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        await reader.readline()
        answers: dict[str, Any] = {}
        for command in ("qmp_capabilities", "query-status", "query-memory-size-summary", "query-block"):
            writer.write(json.dumps({"execute": command}).encode() + b"\n")
            answers[command] = json.loads(await reader.readline())["return"]
        return answers
    finally:
        writer.close()


@pytest.mark.parametrize("name", NAMES)
async def test_qemu_takes_every_machine(name: str, binary: Binary, tmp_path: Path, runtime: Path) -> None:
    inputs = machines(tmp_path, runtime)[name]
    if inputs.spec.cpus > 255 and binary.machine_type != MACHINE_TYPE:
        pytest.skip("emulation names so many processors since QEMU 9.0 only")
    _prepare(inputs)
    with _swtpm(inputs, tmp_path) as ready:
        answers, said, code = await _started(binary, ready, PlainQemu())
    assert said == ""
    assert code == 0
    assert answers["query-status"]["status"] == ("inmigrate" if inputs.incoming else "prelaunch")
    assert answers["query-memory-size-summary"]["base-memory"] == inputs.spec.memory
    drives = {
        each["qdev"].split("/")[3 if each["qdev"].startswith("/machine/p") else 0]
        for each in answers["query-block"]
    }
    assert {f"disk-{disk.id}" for disk in inputs.disks} | {f"cd-{cd.id}" for cd in inputs.cds} <= drives


async def test_qemu_reads_by_io_uring_where_it_can(binary: Binary, tmp_path: Path, runtime: Path) -> None:
    inputs = machines(tmp_path, runtime)["all-buses"]
    _prepare(inputs)
    answers, said, _ = await _started(binary, inputs, PlainQemu(io_uring=True))
    if "io_uring" in said:
        pytest.skip("this kernel refuses io_uring")
    assert said == ""
    assert len(answers["query-block"]) == len(inputs.disks) + len(inputs.cds)
