"""The key of a VM's TPM state: wrapped for its VM, recovered by its recovery key, never half changed."""

from pathlib import Path

import pytest

from holdfast.spec.errors import HoldfastError
from holdfast.trust import recovery_key, state_key
from holdfast.trust.host_key import HostKeys, KeyRing, WrappedByAnotherHost
from holdfast.trust.recovery_key import RecoveryKeyMistyped
from holdfast.trust.state_key import (
    NoRecoveryKey,
    RecoveryKeyExists,
    RecoveryKeyWrong,
    VtpmDamaged,
    VtpmKeyOfAnotherVm,
    VtpmMissing,
)

VM = "0193a0a0-0000-7000-8000-000000000001"
OTHER = "0193a0a0-0000-7000-8000-000000000002"
KEY = bytes(range(32))


@pytest.fixture
async def ring(tmp_path: Path) -> KeyRing:
    (tmp_path / "keys").mkdir()
    return await HostKeys(tmp_path / "keys").ring()


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    (tmp_path / "firmware").mkdir()
    return tmp_path / "firmware"


def test_it_is_wrapped_and_comes_back(firmware: Path, ring: KeyRing) -> None:
    state_key.store(firmware, VM, KEY, ring)
    assert [path.name for path in firmware.iterdir()] == ["tpm.key.json"]
    assert (firmware / "tpm.key.json").stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in (firmware / "tpm.key.json").read_text()
    assert state_key.load(firmware, VM, ring) == KEY
    state_key.forget(firmware)
    with pytest.raises(VtpmMissing):
        state_key.load(firmware, VM, ring)


async def test_those_of_another_vm_and_host_are_told_apart(
    firmware: Path, ring: KeyRing, tmp_path: Path
) -> None:
    state_key.store(firmware, OTHER, KEY, ring)
    with pytest.raises(VtpmKeyOfAnotherVm):
        state_key.load(firmware, VM, ring)
    text = (firmware / "tpm.key.json").read_text()
    (firmware / "tpm.key.json").write_text(text.replace(OTHER, VM))
    with pytest.raises(VtpmDamaged):
        state_key.load(firmware, VM, ring)
    (tmp_path / "elsewhere").mkdir()
    state_key.store(firmware, VM, KEY, await HostKeys(tmp_path / "elsewhere").ring())
    with pytest.raises(WrappedByAnotherHost):
        state_key.load(firmware, VM, ring)


def test_every_cut_and_every_changed_byte_is_refused(firmware: Path, ring: KeyRing) -> None:
    state_key.store(firmware, VM, KEY, ring)
    path = firmware / "tpm.key.json"
    whole = path.read_bytes()
    for index in range(len(whole)):
        for content in (whole[:index], whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :]):
            path.write_bytes(content)
            with pytest.raises(HoldfastError):
                state_key.load(firmware, VM, ring)


@pytest.mark.parametrize("content", [b"", b"ab" * 33, b" " + b"a" * 63, b"ab " * 21 + b"a", b"AB" * 32])
def test_a_damaged_plain_key_is_refused_and_left(firmware: Path, ring: KeyRing, content: bytes) -> None:
    (firmware / "tpm.key").write_bytes(content)
    with pytest.raises(VtpmDamaged):
        state_key.load(firmware, VM, ring)
    assert (firmware / "tpm.key").read_bytes() == content and not (firmware / "tpm.key.json").exists()


def test_a_plain_key_is_taken_over_whatever_interrupts(
    firmware: Path, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    (firmware / "tpm.key").write_text(KEY.hex())
    for function in ("write_atomic", "_forget_plain"):
        with monkeypatch.context() as changed, pytest.raises(Killed):
            changed.setattr(state_key, function, killed)
            state_key.load(firmware, VM, ring)
        assert (firmware / "tpm.key").exists()
    assert (firmware / "tpm.key.json").exists()
    assert state_key.load(firmware, VM, ring) == KEY
    assert [path.name for path in firmware.iterdir()] == ["tpm.key.json"]


async def test_a_recovery_key_brings_it_back_under_another_host_key(
    firmware: Path, ring: KeyRing, tmp_path: Path
) -> None:
    state_key.store(firmware, VM, KEY, ring)
    with pytest.raises(NoRecoveryKey):
        state_key.recover(firmware, VM, recovery_key.written(KEY), ring)
    shown = state_key.make_recovery_key(firmware, VM, ring, new=False)
    assert recovery_key.read(shown) not in (firmware / "tpm.key.json").read_bytes()
    with pytest.raises(RecoveryKeyExists):
        state_key.make_recovery_key(firmware, VM, ring, new=False)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = await HostKeys(tmp_path / "elsewhere").ring()
    with pytest.raises(WrappedByAnotherHost):
        state_key.load(firmware, VM, elsewhere)
    with pytest.raises(RecoveryKeyWrong):
        state_key.recover(firmware, VM, recovery_key.written(bytes(32)), elsewhere)
    state_key.recover(firmware, VM, shown.lower().replace("-", " "), elsewhere)
    assert state_key.load(firmware, VM, elsewhere) == KEY
    renewed = state_key.make_recovery_key(firmware, VM, elsewhere, new=True)
    with pytest.raises(RecoveryKeyWrong):
        state_key.recover(firmware, VM, shown, elsewhere)
    state_key.recover(firmware, VM, renewed, elsewhere)


async def test_rewrapping_keeps_the_recovery_key(firmware: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    keys = HostKeys(tmp_path / "keys")
    state_key.store(firmware, VM, KEY, await keys.ring())
    shown = state_key.make_recovery_key(firmware, VM, await keys.ring(), new=False)
    ring = await keys.renew()
    assert state_key.rewrap(firmware, VM, ring) and not state_key.rewrap(firmware, VM, ring)
    assert state_key.wrapped_by(firmware) == ring.current.id
    await keys.drop_earlier(set(await keys.earlier()))
    assert state_key.load(firmware, VM, await HostKeys(tmp_path / "keys").ring()) == KEY
    state_key.recover(firmware, VM, shown, ring)


def test_a_written_recovery_key_reads_back_and_every_slip_is_noticed() -> None:
    text = recovery_key.written(KEY)
    assert [len(group) for group in text.split("-")] == [7] * 8
    assert recovery_key.read(f" {text.lower()} ") == KEY
    assert recovery_key.read(text.replace("1", "l").replace("0", "O")) == KEY
    for index, each in enumerate(text):
        if each != "-":
            slip = text[:index] + ("2" if each != "2" else "3") + text[index + 1 :]
            with pytest.raises(RecoveryKeyMistyped) as caught:
                recovery_key.read(slip)
            assert slip not in caught.value.message
    for wrong in ("", text[:-1], text + "0", "U" * 56, "ä" * 56):
        with pytest.raises(RecoveryKeyMistyped):
            recovery_key.read(wrong)
