"""The verifier's side: which hosts it knows, what they must boot to, and what it gives to them.

    enrol ▶ challenge with a credential ▶ finish: the host is known
    challenge ▶ attest ▶ token, for five minutes ▶ release: a secret wrapped to that host's TPM

Records of hosts and the secrets lie behind Protocols; nonces are in memory only.
"""

import asyncio
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from cryptography import x509

from holdfast.spec.errors import Conflict, Forbidden, NotFound
from holdfast.spec.host_attestation import (
    HOST_PCRS,
    EnrolledHost,
    HostAttested,
    HostChallenge,
    HostEnrol,
    HostIdentity,
    HostProof,
    HostVerdict,
    ReleaseRequest,
    WrappedForHost,
)
from holdfast.trust.endorsement_certificate import (
    EndorsementNotTrusted,
    load_certificate,
    verify_endorsement,
)
from holdfast.trust.host_attestation.challenges import SECONDS, Challenges
from holdfast.trust.host_attestation.judgement import NOT_GENUINE, judge
from holdfast.trust.host_attestation.release import wrap_for_host
from holdfast.trust.host_attestation.tokens import Clock, TokenSigner, utc_now
from holdfast.trust.tpm.credential import make_credential
from holdfast.trust.tpm.public import Public, is_attestation_key
from holdfast.trust.tpm.wire import TpmNonsense

_NEVER = "ff" * 32
"""Demanded of a PCR that a host did not show, so that it is not trusted."""


log = structlog.get_logger(__name__)


class HostNotEnrolled(NotFound):
    id = "host-not-enrolled"


class HostNameTaken(Conflict):
    id = "host-name-taken"


class HostTpmNotProven(Forbidden):
    """The host does not have the TPM that it claims."""

    id = "host-tpm-not-proven"


class HostNotTrusted(Forbidden):
    """`detail.findings` says why."""

    id = "host-not-trusted"


class HostRecords(Protocol):
    """What a verifier keeps of hosts. Ids and names are unique; names that differ in case are the same."""

    async def get(self, host_id: str) -> EnrolledHost | None: ...
    async def named(self, name: str) -> EnrolledHost | None: ...
    async def put(self, host: EnrolledHost) -> None: ...
    async def remove(self, host_id: str) -> None: ...


class KeptSecrets(Protocol):
    """The secrets that are released to trusted hosts only."""

    async def get(self, purpose: str, make: bool) -> bytes:
        """Raises a NotFound where there is none, and none is to be made."""


@dataclass(frozen=True)
class _Asked:
    """What a nonce was given out for."""

    host: str
    enrolment: HostEnrol | None = None
    certified: bool = False
    credential: bytes = b""


class Verifier:
    def __init__(
        self,
        records: HostRecords,
        kept: KeptSecrets,
        signer: TokenSigner,
        authorities: Sequence[x509.Certificate] = (),
        clock: Clock = utc_now,
    ) -> None:
        """`authorities` make TPMs; where none is named, the admin who enrols a host vouches for its TPM."""
        self._records = records
        self._kept = kept
        self._signer = signer
        self._authorities = authorities
        self._clock = clock
        self._challenges: Challenges[_Asked] = Challenges()
        self._one = asyncio.Lock()

    async def enrol(self, request: HostEnrol) -> HostChallenge:
        """Begin to know a host, or know one anew whose boot state was changed on purpose.

        Raises:
            TpmNonsense: its keys are none, or the attestation key signs other things too.
            EndorsementNotTrusted: authorities are named, and none vouches for its TPM.
            HostNameTaken: another host has this name.
        """
        endorsement, attestation = _keys(request.identity)
        host_id = endorsement.name[2:].hex()
        await self._refuse_taken(request.name, host_id)
        certified = self._certified(request.identity, endorsement)
        credential = secrets.token_bytes(32)
        made = make_credential(endorsement, attestation.name, credential)
        asked = _Asked(host_id, request, certified, credential)
        pcrs = tuple(sorted(request.pcrs or HOST_PCRS))
        return self._challenge(asked, pcrs, made.encode().hex())

    async def finish(self, proof: HostProof) -> EnrolledHost:
        """Know the host from now on; its PCRs become what it must boot to, where none were demanded.

        Raises:
            NonceUnknown, NonceReplayed, NonceExpired: the challenge is not open.
            HostTpmNotProven: it could not open the credential.
            HostNotTrusted: its quote is not genuine, or its PCRs are not those demanded.
        """
        asked = self._challenges.take(bytes.fromhex(proof.nonce))
        if asked.enrolment is None or not hmac.compare_digest(
            bytes.fromhex(proof.activated), asked.credential
        ):
            raise HostTpmNotProven(
                "the host did not prove that it has the TPM which it showed",
                value=asked.host,
                cure="Enrol it again; if that fails too, its TPM is not what it says.",
            )
        identity, name = asked.enrolment.identity, asked.enrolment.name
        shown = proof.evidence.pcrs
        host = EnrolledHost(
            id=asked.host,
            name=name,
            endorsement=identity.endorsement,
            attestation=identity.attestation,
            certified=asked.certified,
            pcrs=asked.enrolment.pcrs or {pcr: shown.get(pcr, _NEVER) for pcr in HOST_PCRS},
            enrolled=self._clock(),
        )
        verdict = self._judge(host, proof)
        async with self._one:
            await self._refuse_taken(name, host.id)
            host = host.model_copy(update={"last": verdict})
            await self._records.put(host)
        return host

    async def challenge(self, host_id: str) -> HostChallenge:
        """Raises HostNotEnrolled."""
        host = await self._known(host_id)
        return self._challenge(_Asked(host.id), tuple(sorted(host.pcrs)))

    async def attest(self, proof: HostProof) -> HostAttested:
        """Judge a host's evidence; the verdict is kept with the host, also a bad one.

        Raises:
            NonceUnknown, NonceReplayed, NonceExpired: the challenge is not open.
            HostNotEnrolled: it was forgotten meanwhile.
            HostNotTrusted: with the findings.
        """
        asked = self._challenges.take(bytes.fromhex(proof.nonce))
        async with self._one:
            host = await self._known(asked.host)
            try:
                verdict = self._judge(host, proof)
            except HostNotTrusted as refused:
                last = HostVerdict.model_validate(refused.detail)
                # What the host's TPM did not sign says nothing of the host: anybody may have sent it.
                if all(each.id != NOT_GENUINE for each in last.findings):
                    await self._records.put(host.model_copy(update={"last": last}))
                raise
            await self._records.put(host.model_copy(update={"last": verdict}))
        token, expires = self._signer.issue(host.id, _name(host))
        return HostAttested(token=token, expires=expires, verdict=verdict)

    async def release(self, request: ReleaseRequest) -> WrappedForHost:
        """The secret kept for a purpose, for the host that the token names.

        Raises:
            TokenNotGenuine, TokenOfAnotherVerifier, TokenTooOld, TokenOfTheFuture: the token.
            HostNotEnrolled: it was forgotten since, or enrolled anew with another key.
            TpmNonsense, ReleaseKeyUnfit: the release key.
            NotFound: nothing is kept for this purpose.
        """
        claims = self._signer.check(request.token)
        host = await self._known(claims.sub)
        if _name(host).hex() != claims.ak:
            raise _not_enrolled(claims.sub)
        key = Public.decode(bytes.fromhex(request.release_key))
        secret = await self._kept.get(request.purpose, request.make)
        wrapped = wrap_for_host(host, key, secret, request.purpose)
        log.info("a key was released", host=host.name, purpose=request.purpose, token=claims.jti)
        return wrapped

    async def forget(self, name: str) -> None:
        """Raises HostNotEnrolled."""
        async with self._one:
            found = await self._records.named(name)
            if found is None:
                raise _not_enrolled(name)
            await self._records.remove(found.id)

    def _challenge(self, asked: _Asked, pcrs: tuple[int, ...], credential: str = "") -> HostChallenge:
        nonce = self._challenges.issue(asked, (asked.host, asked.enrolment is None))
        return HostChallenge(nonce=nonce.hex(), pcrs=pcrs, credential=credential, seconds=SECONDS)

    def _judge(self, host: EnrolledHost, proof: HostProof) -> HostVerdict:
        verdict = judge(host, bytes.fromhex(proof.nonce), proof.evidence, self._clock())
        if verdict.verdict == "trusted":
            return verdict
        reasons = [found.text for found in verdict.findings if found.severity == "failure"]
        raise HostNotTrusted(
            f"the host {host.name!r} is not trusted: {'; '.join(reasons)}",
            value=host.name,
            cure="Find out what changed; if you changed it yourself, `holdfast trust enrol` it anew.",
            detail=verdict.model_dump(mode="json"),
        )

    def _certified(self, identity: HostIdentity, endorsement: Public) -> bool:
        if not self._authorities:
            return False
        if not identity.certificate:
            raise EndorsementNotTrusted(
                "the host's TPM holds no endorsement certificate",
                value=None,
                cure="Enrol it at a verifier that names no authorities, if you vouch for it yourself.",
            )
        certificate = load_certificate(bytes.fromhex(identity.certificate))
        verify_endorsement(certificate, endorsement, self._authorities, self._clock())
        return True

    async def _known(self, host_id: str) -> EnrolledHost:
        host = await self._records.get(host_id)
        if host is None:
            raise _not_enrolled(host_id)
        return host

    async def _refuse_taken(self, name: str, host_id: str) -> None:
        for host in (await self._records.get(host_id), await self._records.named(name)):
            if host and (host.id, host.name.lower()) != (host_id, name.lower()):
                raise HostNameTaken(
                    f"the host {host.name!r} is enrolled already, with "
                    + ("this TPM" if host.id == host_id else "another TPM"),
                    value=host.name,
                    cure=f"Forget it first: `holdfast trust forget {host.name}`.",
                )


def _keys(identity: HostIdentity) -> tuple[Public, Public]:
    endorsement = Public.decode(bytes.fromhex(identity.endorsement))
    attestation = Public.decode(bytes.fromhex(identity.attestation))
    if not is_attestation_key(attestation):
        raise TpmNonsense("the host's attestation key is none", value=attestation.attributes)
    return endorsement, attestation


def _name(host: EnrolledHost) -> bytes:
    return Public.decode(bytes.fromhex(host.attestation)).name


def _not_enrolled(host: str) -> HostNotEnrolled:
    return HostNotEnrolled(
        f"this verifier knows no host {host[:64]!r}",
        value=host[:64],
        cure="Enrol it: `holdfast trust enrol HOST`.",
    )
