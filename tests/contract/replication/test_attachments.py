"""What is sent beside disks: once, sealed for the receiver's key, and as it was at the instant."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.replication import identity
from holdfast.replication.attachments import Attachments, FirmwareChanging, SentVm
from holdfast.spec.ids import new_id
from holdfast.spec.vm import KernelBoot, UefiBoot, VmSpec
from holdfast.trust.firmware_state import FirmwareStates, opened
from holdfast.trust.host_key import HostKeys
from holdfast.trust.protection import LockedForAnother, RecipientOpener
from holdfast.trust.vtpm import Vtpm

STORE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")


@pytest.fixture
def made(tmp_path: Path) -> Attachments:
    state = StateFolder(tmp_path / "state", Path("/run/hf-test"))
    keys = HostKeys(state.keys, None)
    return Attachments(FirmwareStates(Vtpm(Processes(state), state, keys), keys))


def vm(boot: UefiBoot | KernelBoot, name: str = "web") -> SentVm:
    return SentVm(id=new_id(), name=name, spec=VmSpec(cpus=1, memory=1 << 28, boot=boot))


async def test_firmware_state_is_sealed_for_the_receiver_and_sent_when_it_changed(
    made: Attachments, tmp_path: Path
) -> None:
    (tmp_path / "keys").mkdir()
    receiver = identity.load_or_make(tmp_path / "keys")
    pem = receiver.certificate.read_text()
    folder = tmp_path / "web"
    (folder / "firmware").mkdir(parents=True)
    store = folder / "firmware" / "variables.fd"
    shutil.copyfile(STORE, store)
    sent = vm(UefiBoot(tpm=False))
    before = await made.look(sent, folder)
    found = await made.sealed(before, None, folder, pem)
    assert set(found) == {"spec", "firmware"}
    assert SentVm.model_validate_json(found["spec"]) == sent
    state = opened(found["firmware"], RecipientOpener.of_pem(receiver.key.read_bytes()))
    assert (state.vm_id, state.variables) == (sent.id, STORE.read_bytes())
    with pytest.raises(LockedForAnother):
        opened(found["firmware"], RecipientOpener(ec.generate_private_key(ec.SECP256R1())))
    assert await made.sealed(await made.look(sent, folder), before, folder, pem) == {}
    await made.require_same(before, folder)
    with store.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(FirmwareChanging):
        await made.require_same(before, folder)
    assert set(await made.sealed(await made.look(sent, folder), before, folder, pem)) == {"firmware"}


async def test_a_kernel_started_directly_has_a_specification_only(made: Attachments, tmp_path: Path) -> None:
    boot = KernelBoot(kernel="sha256:" + "0" * 64, append="quiet")
    sent = vm(boot)
    beside = await made.look(sent, tmp_path)
    assert set(await made.sealed(beside, None, tmp_path, "")) == {"spec"}
    other = await made.look(sent.model_copy(update={"name": "db"}), tmp_path)
    assert set(await made.sealed(other, beside, tmp_path, "")) == {"spec"}
    await made.require_same(beside, tmp_path)
