"""Small secrets that only this TPM opens, and only while the host has booted as it did.

A sealed object (part 1, section 25) under the storage primary of the owner hierarchy; its policy is
PolicyPCR. Nothing is stored in the TPM. On the bus the secret is encrypted by a session whose salt only
the storage primary can open; who listens learns nothing. Who replaces the bus's traffic while something
is SEALED could pose as the TPM; afterwards the blob names the storage primary and no other is accepted.

    blob: JSON {"version": 1, "tpm": Name of the storage primary, "pcrs": {"7": value, ...},
                "public": TPMT_PUBLIC, "private": TPM2B_PRIVATE's content}; all values hexadecimal
"""

import hmac
import json
from typing import Literal

from pydantic import ValidationError

from holdfast.spec.errors import Conflict, Failed
from holdfast.spec.model import Frozen
from holdfast.trust.tpm.numbers import Permanent
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.public import STORAGE_TEMPLATE, Public, sealed_template
from holdfast.trust.tpm.refusals import TpmRefused
from holdfast.trust.tpm.tpm import Key, Sealed, Tpm
from holdfast.trust.tpm.transports import HOST_TPM, open_tpm
from holdfast.trust.tpm.wire import TpmNonsense

HOST_BOOT = PcrSelection.of([0, 2, 4, 7])
"""Firmware, its extensions, the boot loader, and Secure Boot: TCG PC Client Platform Firmware Profile,
section 3.3.4. Kernel command line and initrd are left out: they change with every update of the host."""

MOST = 128
"""Bytes that can be sealed (MAX_SYM_DATA)."""
_MAX_BLOB = 16 * 1024
_CHANGED = ("value", "policy-fail", "pcr-changed")


class HostBootChanged(Conflict):
    """The PCRs are not what they were at sealing; `value` lists those that differ."""

    id = "host-boot-changed"


class SealedElsewhere(Failed):
    """Sealed by another TPM, or this one was cleared since."""

    id = "sealed-elsewhere"


class SealedDamaged(Failed):
    id = "sealed-damaged"


class _Blob(Frozen):
    version: Literal[1]
    tpm: str
    pcrs: dict[int, str]
    public: str
    private: str


class HostTpmSealer:
    """Seals and unseals by the host's TPM, which is opened for each."""

    def __init__(self, address: str = HOST_TPM, selection: PcrSelection = HOST_BOOT) -> None:
        self._address = address
        self._selection = selection

    async def seal(self, secret: bytes) -> bytes:
        """See `seal`; raises also what `open_tpm` raises."""
        async with open_tpm(self._address) as tpm:
            return await seal(tpm, secret, self._selection)

    async def unseal(self, blob: bytes) -> bytes:
        """See `unseal`; raises also what `open_tpm` raises."""
        async with open_tpm(self._address) as tpm:
            return await unseal(tpm, blob)


async def seal(tpm: Tpm, secret: bytes, selection: PcrSelection = HOST_BOOT) -> bytes:
    """Seal at most 128 bytes to what the PCRs hold now; returns the blob, which is no secret.

    Raises:
        TpmRefused: the owner hierarchy has a password, or the TPM lacks room.
    """
    if len(secret) > MOST:
        raise ValueError(f"at most {MOST} bytes can be sealed, not {len(secret)}")
    values = await tpm.pcr_read(selection)
    async with (
        tpm.primary(Permanent.OWNER, STORAGE_TEMPLATE) as storage,
        tpm.encrypting_session(storage) as session,
    ):
        sealed = await tpm.create(storage, secret, sealed_template(selection.policy(values)), session)
    blob = _Blob(
        version=1,
        tpm=storage.public.name.hex(),
        pcrs={pcr: value.hex() for pcr, value in values.items()},
        public=sealed.public.encode().hex(),
        private=sealed.private.hex(),
    )
    return blob.model_dump_json().encode()


async def unseal(tpm: Tpm, blob: bytes) -> bytes:
    """Open what `seal` made.

    Raises:
        HostBootChanged: the PCRs hold other values now.
        SealedElsewhere: not by this TPM, or it was cleared.
        SealedDamaged: it is no such blob, or was altered.
    """
    tpm_name, values, sealed = _read(blob)
    selection = PcrSelection.of(values)
    async with tpm.primary(Permanent.OWNER, STORAGE_TEMPLATE) as storage:
        if not hmac.compare_digest(storage.public.name, tpm_name):
            raise SealedElsewhere(
                "the secret was sealed by another TPM, or this one was cleared since",
                value=tpm_name.hex(),
                cure="Use the recovery key, then seal anew.",
            )
        _refuse_changed(values, await tpm.pcr_read(selection))
        try:
            return await _open(tpm, storage, sealed, selection, values)
        except TpmRefused as refused:
            if refused.reason in _CHANGED:
                raise _changed([]) from refused
            if refused.reason == "integrity":
                raise _damaged("its integrity check fails") from refused
            raise


async def _open(tpm: Tpm, storage: Key, sealed: Sealed, selection: PcrSelection, values: PcrValues) -> bytes:
    async with (
        tpm.load(storage, sealed) as item,
        tpm.encrypting_session(storage) as session,
        tpm.policy_session() as policy,
    ):
        await tpm.policy_pcr(policy, selection, values)
        return await tpm.unseal(item, policy, session)


def _read(blob: bytes) -> tuple[bytes, dict[int, bytes], Sealed]:
    if len(blob) > _MAX_BLOB:
        raise _damaged("it is too long")
    try:
        read = _Blob.model_validate(json.loads(blob))
        values = {pcr: bytes.fromhex(value) for pcr, value in read.pcrs.items()}
        PcrSelection.of(values)
        sealed = Sealed(Public.decode(bytes.fromhex(read.public)), bytes.fromhex(read.private))
        return bytes.fromhex(read.tpm), values, sealed
    except (ValueError, ValidationError, RecursionError, TpmNonsense) as error:
        raise _damaged("it has not the form of one") from error


def _refuse_changed(sealed: PcrValues, now: PcrValues) -> None:
    changed = [pcr for pcr in sealed if now[pcr] != sealed[pcr]]
    if changed:
        raise _changed(changed)


def _changed(pcrs: list[int]) -> HostBootChanged:
    which = f"PCR {', '.join(map(str, pcrs))}" if pcrs else "what its TPM measured"
    return HostBootChanged(
        f"this host did not boot as it did when the secret was sealed: {which} differs",
        value=pcrs,
        cure="Boot the host as before; or, if you changed it yourself, use the recovery key and seal anew.",
    )


def _damaged(reason: str) -> SealedDamaged:
    return SealedDamaged(
        f"the sealed secret is damaged: {reason}",
        value=reason,
        cure="Restore the file from a backup, or use the recovery key and seal anew.",
    )
