"""The host's side of host attestation: what its TPM has to say. Nothing is kept here."""

import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.spec.errors import Failed
from holdfast.spec.host_attestation import (
    HostChallenge,
    HostEvidence,
    HostIdentity,
    HostProof,
    Pcrs,
    WrappedForHost,
)
from holdfast.trust.attestation_key import Attester, attester
from holdfast.trust.host_attestation.release import release_key, unwrap_on_host
from holdfast.trust.tpm.credential import Credential
from holdfast.trust.tpm.pcrs import PcrSelection, PcrValues
from holdfast.trust.tpm.tpm import RawQuote, Tpm
from holdfast.trust.tpm.transports import HOST_TPM, open_tpm

EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
_MAX_LOG = 1024 * 1024
_TRIES = 3


class PcrsRestless(Failed):
    id = "pcrs-restless"


class AttestingHost:
    """This host, as it shows itself to verifiers."""

    def __init__(self, address: str = HOST_TPM, event_log: Path | None = None) -> None:
        """`address` is that of its TPM: see `trust.tpm.transports`. An emulated one has no event log."""
        self._address = address
        self._event_log = event_log or (EVENT_LOG if address.startswith("device:") else None)

    async def identity(self) -> HostIdentity:
        """Raises NoTpm, NoEndorsementKey and whatever the TPM refuses."""
        async with self._attester() as (_, attesting):
            found = await attesting.endorsement()
            return HostIdentity(
                endorsement=found.public.encode().hex(),
                certificate=found.certificate.hex() if found.certificate else None,
                attestation=attesting.public.encode().hex(),
            )

    async def prove(self, challenge: HostChallenge) -> HostProof:
        """Answer a verifier's challenge.

        Raises:
            PcrsRestless: they were extended all the while.
            TpmRefused: the credential was made for another TPM.
        """
        async with self._attester() as (tpm, attesting):
            activated = b""
            if challenge.credential:
                credential = Credential.decode(bytes.fromhex(challenge.credential))
                activated = await attesting.activate(credential)
            selection = PcrSelection.of(challenge.pcrs)
            quote, values = await _steady(tpm, attesting, bytes.fromhex(challenge.nonce), selection)
        return HostProof(
            nonce=challenge.nonce,
            activated=activated.hex(),
            evidence=HostEvidence(
                attest=quote.attest.hex(),
                signature=quote.signature.hex(),
                pcrs={pcr: value.hex() for pcr, value in values.items()},
                event_log=self._log(),
            ),
        )

    async def release_key(self, pcrs: Pcrs) -> str:
        """TPMT_PUBLIC (hexadecimal) of the key to which a verifier shall wrap secrets, for these PCRs."""
        async with open_tpm(self._address) as tpm:
            return (await release_key(tpm, _values(pcrs))).encode().hex()

    async def unwrap(self, wrapped: WrappedForHost, pcrs: Pcrs, purpose: str) -> bytes:
        """Open what a verifier released to this host; see `release.unwrap_on_host`."""
        async with open_tpm(self._address) as tpm:
            return await unwrap_on_host(tpm, wrapped, _values(pcrs), purpose)

    @contextlib.asynccontextmanager
    async def _attester(self) -> AsyncIterator[tuple[Tpm, Attester]]:
        async with open_tpm(self._address) as tpm, attester(tpm) as attesting:
            yield tpm, attesting

    def _log(self) -> str:
        if self._event_log is None:
            return ""
        try:
            with self._event_log.open("rb") as file:
                log = file.read(_MAX_LOG + 1)
        except OSError:
            return ""
        return base64.b64encode(log).decode("ascii") if len(log) <= _MAX_LOG else ""


async def _steady(
    tpm: Tpm, attesting: Attester, nonce: bytes, selection: PcrSelection
) -> tuple[RawQuote, dict[int, bytes]]:
    """A quote, and the values that it is about: nobody may have extended a PCR between the two."""
    for _ in range(_TRIES):
        before = await tpm.pcr_read(selection)
        quote = await attesting.quote(nonce, selection)
        if await tpm.pcr_read(selection) == before:
            return quote, before
    raise PcrsRestless(
        f"PCRs {', '.join(map(str, selection.pcrs))} are being extended all the while",
        value=list(selection.pcrs),
        cure="Wait until the host has booted.",
    )


def _values(pcrs: Pcrs) -> PcrValues:
    return {pcr: bytes.fromhex(value) for pcr, value in pcrs.items()}
