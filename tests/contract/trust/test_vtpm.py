"""Against the real swtpm, spoken to by tpm2-tools."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.ids import new_id
from holdfast.trust import state_key
from holdfast.trust.host_key import HostKeys
from holdfast.trust.vtpm import Vtpm, VtpmDamaged, VtpmEnded, VtpmMissing, VtpmRunning

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "swtpm_setup", "tpm2_nvread")),
    reason="swtpm, swtpm-tools and tpm2-tools are needed",
)
SECRET = b"a-secret-that-must-not-lie-open!"
IDENTITY = Identity(54321, 54321) if os.geteuid() == 0 else None


class Bench:
    def __init__(self, state: StateFolder) -> None:
        self.state = state
        self.processes = Processes(state)
        self.keys = HostKeys(state.keys)
        self.vtpm = Vtpm(self.processes, state, self.keys)
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


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    root = Path("/tmp") / f"hft-{new_id()[:8]}"
    root.mkdir(mode=0o711)
    root.chmod(0o711)
    state = StateFolder(root / "s", root / "r")
    state.prepare()
    bench = Bench(state)
    yield bench
    for marked in bench.processes.find():
        await bench.processes.end(marked.ref, grace=1)
    shutil.rmtree(root)


def permall(folder: Path) -> bytes:
    return (folder / "firmware" / "tpm" / "tpm2-00.permall").read_bytes()


async def test_identity_is_vouched_for_and_state_encrypted(bench: Bench) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    firmware = bench.folder / "firmware"
    kept = firmware / "tpm.key.json"
    assert kept.stat().st_mode & 0o777 == 0o600 and not (firmware / "tpm.key").exists()
    key = state_key.load(firmware, bench.id, await bench.keys.ring())
    assert key.hex() not in kept.read_text()
    assert [path.name for path in (bench.folder / "firmware" / "tpm").iterdir()] == ["tpm2-00.permall"]
    der = await bench.tool("tpm2_nvread", "-C", "o", "0x1c00002")
    certificate = x509.load_der_x509_certificate(der)
    authority = x509.load_pem_x509_certificate((bench.state.keys / "vtpm-ca.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert isinstance(authority.public_key(), ec.EllipticCurvePublicKey)
    await bench.tool("tpm2_nvdefine", "-C", "o", "-s", str(len(SECRET)), "0x1500016")
    await bench.tool("tpm2_nvwrite", "-C", "o", "-i", "-", "0x1500016", stdin=SECRET)
    assert SECRET in await bench.tool("tpm2_nvread", "-C", "o", "0x1500016")
    assert SECRET not in permall(bench.folder)


async def test_two_made_at_once_differ_in_key_and_serial(bench: Bench) -> None:
    other, other_id = bench.make("two"), new_id()
    await asyncio.gather(
        bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY),
        bench.vtpm.manufacture(other_id, other, IDENTITY),
    )
    one = await bench.tool("tpm2_nvread", "-C", "o", "0x1c00002")
    bench.folder, bench.id = other, other_id
    two = await bench.tool("tpm2_nvread", "-C", "o", "0x1c00002")
    first, second = x509.load_der_x509_certificate(one), x509.load_der_x509_certificate(two)
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key()


async def test_it_starts_unprivileged_is_found_again_and_survives_a_kill(bench: Bench) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    (bench.runtime / "swtpm.sock").touch()  # a stale one
    attachment = await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    assert attachment.socket.is_socket()
    assert attachment.socket.stat().st_mode & 0o777 == 0o600
    found = Vtpm(Processes(bench.state), bench.state, bench.keys).find(bench.id)
    assert found is not None
    key = state_key.load(bench.folder / "firmware", bench.id, await bench.keys.ring()).hex()
    assert not any(key in part for part in found.argv)
    if IDENTITY:
        assert Path(f"/proc/{found.ref.pid}").stat().st_uid == IDENTITY.uid
    with pytest.raises(VtpmRunning):
        await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    os.kill(found.ref.pid, signal.SIGKILL)
    await bench.processes.wait(found.ref)
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    await bench.vtpm.stop(bench.id)
    assert bench.vtpm.find(bench.id) is None


def opened() -> set[str]:
    """What our descriptors lead to; the loop's own and pidfds of reapers come and go."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if any(word in target for word in ("socket:", "memfd:", "swtpm")):
                found.add(target)
    return found


async def test_an_early_end_is_told_with_the_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    programs = bench.state.root / "programs"
    programs.mkdir(mode=0o755)
    (programs / "swtpm").write_text("#!/bin/sh\necho the TPM is broken >&2\nexit 3\n")
    for path in (programs, programs / "swtpm"):
        path.chmod(0o755)
    before = opened()
    with monkeypatch.context() as changed:
        changed.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with pytest.raises(VtpmEnded) as caught:
            await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    assert caught.value.detail["log"] == "the TPM is broken"
    assert bench.vtpm.find(bench.id) is None
    assert opened() == before and list(bench.runtime.iterdir()) == []
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)


@pytest.mark.parametrize("key", [b"no key", b"\xff" * 64, b"ab" * 33, b"", b" " + b"a" * 63])
async def test_a_damaged_key_is_refused_before_anything_is_moved(bench: Bench, key: bytes) -> None:
    firmware, before = bench.folder / "firmware", opened()
    (firmware / "tpm").mkdir(parents=True)
    (firmware / "tpm" / "tpm2-00.permall").write_bytes(b"state")
    (firmware / "tpm.key").write_bytes(key)
    for empty in (False, True):
        with pytest.raises(VtpmDamaged) as caught:
            await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY, empty=empty)
        assert caught.value.value == str(firmware / "tpm.key")
    assert permall(bench.folder) == b"state" and not (firmware / "tpm.kept").exists()
    assert opened() == before and list(bench.runtime.iterdir()) == []


async def test_a_failed_restore_loses_nothing(bench: Bench) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    before = permall(bench.folder)
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY, empty=True)
    assert not list((bench.folder / "firmware" / "tpm").glob("*.permall"))
    for _ in range(2):
        await bench.vtpm.put_back(bench.id, bench.folder)
        assert permall(bench.folder) == before
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY, empty=True)
    await bench.vtpm.stop(bench.id)
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    assert permall(bench.folder) == before
    await bench.vtpm.stop(bench.id)


async def test_a_plain_key_is_taken_over_at_its_first_use(bench: Bench) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    firmware = bench.folder / "firmware"
    key = state_key.load(firmware, bench.id, await bench.keys.ring())
    (firmware / "tpm.key.json").unlink()
    (firmware / "tpm.key").write_text(key.hex())
    await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
    assert not (firmware / "tpm.key").exists() and (firmware / "tpm.key.json").exists()
    assert state_key.load(firmware, bench.id, await bench.keys.ring()) == key


async def test_delete_removes_everything(bench: Bench) -> None:
    await bench.vtpm.manufacture(bench.id, bench.folder, IDENTITY)
    await bench.vtpm.delete(bench.id, bench.folder)
    assert list((bench.folder / "firmware").iterdir()) == []
    with pytest.raises(VtpmMissing):
        await bench.vtpm.start(bench.id, bench.folder, bench.runtime, IDENTITY)
