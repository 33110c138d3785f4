"""Against the real swtpm, spoken to by tpm2-tools."""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tpm_bench import IDENTITY, SECRET, Bench, permall

from holdfast.host.processes import Processes
from holdfast.spec.ids import new_id
from holdfast.trust import state_key
from holdfast.trust.vtpm import Vtpm, VtpmDamaged, VtpmEnded, VtpmMissing, VtpmRunning

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "swtpm_setup", "tpm2_nvread")),
    reason="swtpm, swtpm-tools and tpm2-tools are needed",
)


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
