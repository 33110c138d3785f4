"""Sealing to the host's boot state, against the real swtpm; the bus is watched."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from emulated_tpm import EmulatedTpm

from holdfast.trust.tpm.exchange import TpmTransport
from holdfast.trust.tpm.numbers import HandleKind
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.refusals import TpmForged, TpmRefused
from holdfast.trust.tpm.sealing import (
    HOST_BOOT,
    HostBootChanged,
    HostTpmSealer,
    SealedDamaged,
    SealedElsewhere,
    seal,
    unseal,
)
from holdfast.trust.tpm.tpm import Tpm
from holdfast.trust.tpm.transports import open_tpm

SECRET = secrets.token_bytes(64)


class Watched:
    """A transport that keeps what goes over the bus, and may alter an answer."""

    def __init__(self, tpm: Tpm) -> None:
        self._inner: TpmTransport = tpm._exchange._transport
        self.seen: list[bytes] = []
        self.alter_from = b""

    async def transmit(self, command: bytes) -> bytes:
        answer = await self._inner.transmit(command)
        self.seen += [command, answer]
        if self.alter_from and command[6:10] == self.alter_from:
            return answer[:20] + bytes([answer[20] ^ 1]) + answer[21:]
        return answer


async def test_what_is_sealed_opens_after_a_reboot_and_only_here(tpms: list[EmulatedTpm]) -> None:
    one, two = tpms
    async with open_tpm(one.address) as tpm:
        blob = await seal(tpm, SECRET)
    assert SECRET not in blob and SECRET.hex().encode() not in blob
    one.reboot()
    async with open_tpm(one.address) as tpm:
        assert await unseal(tpm, blob) == SECRET
        assert await tpm.handles(HandleKind.OBJECTS) == ()
        assert await tpm.handles(HandleKind.HMAC_SESSIONS) == ()
    async with open_tpm(two.address) as tpm:
        with pytest.raises(SealedElsewhere):
            await unseal(tpm, blob)


async def test_another_boot_opens_nothing_and_names_the_pcrs(emulated: EmulatedTpm) -> None:
    async with open_tpm(emulated.address) as tpm:
        await tpm.pcr_extend(7, bytes(32))
        blob = await seal(tpm, SECRET)
    emulated.reboot()
    async with open_tpm(emulated.address) as tpm:
        await tpm.pcr_extend(4, bytes(32))
        with pytest.raises(HostBootChanged) as changed:
            await unseal(tpm, blob)
        assert changed.value.value == [4, 7]
        # The TPM itself refuses, not only we: a blob that lies about the values is of no use.
        lie = json.loads(blob)
        lie["pcrs"] = {pcr: v.hex() for pcr, v in (await tpm.pcr_read(HOST_BOOT)).items()}
        with pytest.raises(HostBootChanged) as changed:
            await unseal(tpm, json.dumps(lie).encode())
        assert changed.value.value == []
        lie["pcrs"] = {}
        with pytest.raises((HostBootChanged, TpmRefused)):
            await unseal(tpm, json.dumps(lie).encode())
    emulated.reboot()
    async with open_tpm(emulated.address) as tpm:
        await tpm.pcr_extend(7, bytes(32))
        assert await unseal(tpm, blob) == SECRET


async def test_the_sealer_opens_the_tpm_for_each(emulated: EmulatedTpm) -> None:
    sealer = HostTpmSealer(emulated.address)
    blob = await sealer.seal(SECRET)
    emulated.reboot()
    assert await sealer.unseal(blob) == SECRET


async def test_nothing_of_the_secret_is_on_the_bus(emulated: EmulatedTpm) -> None:
    async with open_tpm(emulated.address) as tpm:
        watched = Watched(tpm)
        blob = await seal(Tpm(watched), SECRET)
        assert await unseal(Tpm(watched), blob) == SECRET
        bus = b"".join(watched.seen)
        assert len(bus) > 2000
        assert not any(SECRET[at : at + 8] in bus for at in range(len(SECRET) - 8))


async def test_an_altered_answer_is_found(emulated: EmulatedTpm) -> None:
    async with open_tpm(emulated.address) as tpm:
        blob = await seal(tpm, SECRET)
        watched = Watched(tpm)
        watched.alter_from = bytes.fromhex("0000015e")
        with pytest.raises(TpmForged):
            await unseal(Tpm(watched), blob)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2}, {"pcrs": {"99": "00"}}, {"pcrs": {"7": "zz"}}, {"public": "00"}, {"private": "g"},
        {"more": 1}, {"tpm": 3},
    ],
)  # fmt: skip
async def test_a_damaged_blob_is_refused(emulated: EmulatedTpm, damage: dict[str, Any]) -> None:
    async with open_tpm(emulated.address) as tpm:
        blob = json.loads(await seal(tpm, SECRET, PcrSelection.of([7])))
        for bad in (
            json.dumps(blob | damage).encode(), b"", b"[" * 10_000, b"x" * 20_000,
            json.dumps(blob | {"private": "00" + blob["private"][2:-2] + "00"}).encode(),
        ):  # fmt: skip
            with pytest.raises(SealedDamaged):
                await unseal(tpm, bad)


async def test_too_much_is_a_mistake_of_the_caller(emulated: EmulatedTpm, tmp_path: Path) -> None:
    async with open_tpm(emulated.address) as tpm:
        assert await unseal(tpm, await seal(tpm, bytes(128))) == bytes(128)
        with pytest.raises(ValueError, match="at most 128"):
            await seal(tpm, bytes(129))
