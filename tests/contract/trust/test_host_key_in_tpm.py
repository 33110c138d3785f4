"""The host key in a TPM: real sealing by an emulated host TPM, through changes of the host's boot."""

from pathlib import Path

import pytest
from emulated_tpm import EmulatedTpm

from holdfast.spec.firmware_state import HostKeyKind
from holdfast.trust import state_key
from holdfast.trust.host_key import HostKeys, HostKeySealed, WrappedByAnotherHost
from holdfast.trust.rotation import VmFolder, finish, rotate
from holdfast.trust.tpm.sealing import HostTpmSealer

VM = "0193a0a0-0000-7000-8000-000000000001"
KEY = bytes(range(32))


def extend(tpm: EmulatedTpm, folder: Path, pcr: int) -> None:
    """What another boot loader would do."""
    tpm.tool("tpm2_pcrextend", f"{pcr}:sha256={'ab' * 32}", folder=folder)


@pytest.fixture
def vm(tmp_path: Path) -> VmFolder:
    for name in ("keys", "vm", "vm/firmware"):
        (tmp_path / name).mkdir()
    return VmFolder(VM, "web", tmp_path / "vm")


async def test_it_opens_in_the_same_boot_state_only(
    emulated: EmulatedTpm, tmp_path: Path, vm: VmFolder
) -> None:
    sealer = HostTpmSealer(emulated.address)
    firmware = vm.path / "firmware"
    keys = HostKeys(tmp_path / "keys", sealer)
    ring = await keys.ring()
    assert ring.current.kind is HostKeyKind.TPM
    assert ring.current.secret.hex() not in (tmp_path / "keys" / "host.key").read_text()
    state_key.store(firmware, VM, KEY, ring)
    shown = state_key.make_recovery_key(firmware, VM, ring, new=False)
    emulated.reboot()
    later = HostKeys(tmp_path / "keys", sealer)
    assert state_key.load(firmware, VM, await later.ring()) == KEY
    assert (await later.facts()).problem == ""

    emulated.reboot()
    extend(emulated, tmp_path, 4)
    changed = HostKeys(tmp_path / "keys", sealer)
    with pytest.raises(HostKeySealed) as caught:
        await changed.ring()
    assert caught.value.detail["tpm"]["id"] == "host-boot-changed"
    facts = await changed.facts()
    assert facts.kind is HostKeyKind.TPM and facts.problem and "recover" in facts.cure
    # A recovery key begins a new host key, sealed to the boot as it is now.
    ring = await changed.renew()
    assert ring.current.kind is HostKeyKind.TPM
    with pytest.raises(WrappedByAnotherHost):
        state_key.load(firmware, VM, ring)
    state_key.recover(firmware, VM, shown, ring)
    assert state_key.load(firmware, VM, await HostKeys(tmp_path / "keys", sealer).ring()) == KEY


async def test_the_key_moves_to_a_file_for_an_update_and_back(
    emulated: EmulatedTpm, tmp_path: Path, vm: VmFolder
) -> None:
    async def every() -> list[VmFolder]:
        return [vm]

    sealer = HostTpmSealer(emulated.address)
    keys = HostKeys(tmp_path / "keys", sealer)
    state_key.store(vm.path / "firmware", VM, KEY, await keys.ring())
    assert (await rotate(keys, every, HostKeyKind.FILE)).rewrapped == 1
    emulated.reboot()
    extend(emulated, tmp_path, 7)
    keys = HostKeys(tmp_path / "keys", sealer)
    assert (await keys.ring()).current.kind is HostKeyKind.FILE
    assert (await rotate(keys, every, HostKeyKind.TPM)).rewrapped == 1
    assert await keys.kind() is HostKeyKind.TPM and await keys.earlier() == ()
    assert state_key.load(vm.path / "firmware", VM, await keys.ring()) == KEY


async def test_another_hosts_tpm_opens_nothing(tpms: list[EmulatedTpm], tmp_path: Path, vm: VmFolder) -> None:
    async def every() -> list[VmFolder]:
        return [vm]

    ring = await HostKeys(tmp_path / "keys", HostTpmSealer(tpms[0].address)).ring()
    state_key.store(vm.path / "firmware", VM, KEY, ring)
    stolen = HostKeys(tmp_path / "keys", HostTpmSealer(tpms[1].address))
    with pytest.raises(HostKeySealed) as caught:
        await stolen.ring()
    assert caught.value.detail["tpm"]["id"] == "sealed-elsewhere"
    tpms[1].stop()
    with pytest.raises(HostKeySealed):
        await stolen.ring()
    # What does not open here is kept: the disk may go back into its host.
    await stolen.renew(HostKeyKind.FILE)
    assert (await finish(stolen, every)).unreadable == ("web",)
    assert len(await stolen.earlier()) == 1
    home = HostKeys(tmp_path / "keys", HostTpmSealer(tpms[0].address))
    assert state_key.load(vm.path / "firmware", VM, await home.ring()) == KEY
