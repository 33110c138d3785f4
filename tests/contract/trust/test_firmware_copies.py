"""Firmware state copied while its TPM is served, kept for this host, and put back after a rotation."""

import shutil
from pathlib import Path

import pytest
from test_firmware_state import IDENTITY, SEALED, made, unsealed
from tpm_bench import Bench, permall

from holdfast.trust.envelope import FirmwareStateDamaged
from holdfast.trust.firmware_state import copy_files
from holdfast.trust.rotation import VmFolder, rotate
from holdfast.trust.vtpm import VtpmRunning

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "swtpm_setup", "tpm2_nvread")),
    reason="swtpm, swtpm-tools and tpm2-tools are needed",
)


async def test_a_copy_of_a_running_vm_brings_back_what_was_sealed(bench: Bench) -> None:
    await made(bench)
    vm_id, folder = bench.id, bench.folder
    await bench.vtpm.start(vm_id, folder, bench.runtime, IDENTITY)
    with pytest.raises(VtpmRunning):
        await bench.firmware.take(vm_id, folder, has_tpm=True)
    copied = copy_files(folder, has_tpm=True)
    state = await bench.firmware.of_copy(copied, vm_id, folder)
    await bench.vtpm.stop(vm_id)
    assert state.tpm and state.tpm.identity == vm_id and state.tpm.state == copied.tpm
    place = folder / "checkpoints" / "a name" / "firmware.hfstate"
    place.parent.mkdir(parents=True)
    await bench.firmware.keep(state, place)
    data = place.read_bytes()
    assert place.stat().st_mode & 0o777 == 0o600
    assert state.tpm.key not in data and state.tpm.state not in data

    async def every() -> list[VmFolder]:
        return [VmFolder(vm_id, "one", folder)]

    assert (await rotate(bench.keys, every)).rewrapped == 1
    assert place.read_bytes() != data and await bench.keys.earlier() == ()
    # The VM moves on: it has another TPM now.
    await bench.vtpm.manufacture(vm_id, folder, IDENTITY)
    await bench.firmware.put(await bench.firmware.kept(place), vm_id, folder, IDENTITY)
    assert permall(folder) == copied.tpm
    assert await unsealed(bench, vm_id, folder) == SEALED


async def test_what_is_not_whole_is_not_put(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(FirmwareStateDamaged):
        await bench.firmware.kept(tmp_path / "none.hfstate")
    (tmp_path / "cut.hfstate").write_bytes(b"\x89HFS\r\n\x1a\n")
    with pytest.raises(FirmwareStateDamaged):
        await bench.firmware.kept(tmp_path / "cut.hfstate")
