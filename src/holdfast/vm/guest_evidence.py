"""Evidence of a guest's boot, asked of its own TPM through its agent, and the TPM's identity.

Everything but the enrolment is the guest's word until the quote proves it. The enrolment is made at
the first question: the endorsement certificate must be of our authority and name this VM, and the
attestation key must live in that same TPM (credential activation).
"""

import asyncio
import contextlib
import datetime
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from cryptography import x509

from holdfast.catalog.tables import TrustRow
from holdfast.host.folders import StateFolder
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.errors import Failed
from holdfast.spec.trust import BOOT_PCRS, Bank, TrustPolicy
from holdfast.spec.vm import UefiBoot
from holdfast.trust.attestation_key import Attester, attester
from holdfast.trust.endorsement_certificate import EndorsementNotTrusted, load_certificate, verify_endorsement
from holdfast.trust.policy import needed_pcrs
from holdfast.trust.tpm.credential import make_credential
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.tpm.public import Public
from holdfast.trust.verdict import Evidence
from holdfast.vm.admission import Verb
from holdfast.vm.firmware_state import NoVtpm
from holdfast.vm.guest import AgentNotThere
from holdfast.vm.guest_tpm import open_guest_tpm, read_event_log
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import VmRecord, tpm_identity
from holdfast.vm.trust_records import StoredEnrolment, TrustRecords

Progress = Callable[[float, str], None]


class TpmOfOther(Failed):
    """The TPM in the guest is not the one that this host made for the VM."""

    id = "tpm-of-other"


class Authority(Protocol):
    """Who vouches for the endorsement keys of this host's VMs."""

    def certificates(self, folder: Path) -> list[x509.Certificate]:
        """`folder` is the VM's."""
        ...


@dataclass(frozen=True)
class Asked:
    """A guest in the middle of being asked: its TPM is open."""

    evidence: Evidence
    enrolled: StoredEnrolment
    attesting: Attester
    agent: GuestAgent

    @property
    def changed(self) -> bool:
        """The TPM's attestation key is another than the one enrolled."""
        return self.attesting.public.encode() != self.enrolled.attestation_key


class GuestEvidence:
    """Asks guests, and enrols their TPMs."""

    def __init__(self, records: TrustRecords, state: StateFolder, authority: Authority) -> None:
        self._records = records
        self._state = state
        self._authority = authority
        self._one: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def ask(
        self,
        owner: VmOwner,
        *policies: TrustPolicy,
        progress: Progress = lambda *_: None,
        keep_identity: bool = True,
    ) -> AsyncIterator[Asked]:
        """Evidence for policies, freshly asked for; the TPM stays open while the block runs.

        One asks a guest at a time. `keep_identity` unset, a TPM that is not enrolled yet is only looked at.
        """
        lock = self._one.setdefault(owner.record.id, asyncio.Lock())
        async with lock, self._asked(owner, policies, progress, keep_identity) as asked:
            yield asked

    @contextlib.asynccontextmanager
    async def _asked(
        self, owner: VmOwner, policies: Sequence[TrustPolicy], progress: Progress, keep_identity: bool
    ) -> AsyncIterator[Asked]:
        require_vtpm(owner.record)
        agent = await agent_of(owner)
        selection = PcrSelection.of({*BOOT_PCRS}.union(*(needed_pcrs(each) for each in policies)))
        nonce = secrets.token_bytes(32)
        progress(0.0, "opening the guest's TPM")
        async with open_guest_tpm(agent) as tpm, attester(tpm) as attesting:
            progress(0.3, "proving the TPM's identity")
            stored = (await self._records.get(owner.record.id)).enrolment
            enrolled = stored or await self._enrol(owner.record, attesting, keep_identity)
            progress(0.6, "asking for a quote")
            quote = await attesting.quote(nonce, selection)
            pcrs = await tpm.pcr_read(selection)
            progress(0.9, "reading the event log")
            evidence = Evidence(
                attestation_key=enrolled.attestation_key,
                nonce=nonce,
                attest=quote.attest,
                signature=quote.signature,
                log=await read_event_log(agent),
                pcrs={Bank.SHA256: pcrs},
            )
            yield Asked(evidence, enrolled, attesting, agent)

    async def _enrol(self, record: VmRecord, attesting: Attester, keep: bool) -> StoredEnrolment:
        """Make sure that this is the TPM that was made for this VM, and that the key lives in it."""
        endorsement = await attesting.endorsement()
        if endorsement.certificate is None:
            raise EndorsementNotTrusted(
                "the TPM in the guest has no endorsement certificate",
                value=record.name,
                cure="Delete the VM and make it again: every new TPM has one.",
            )
        certificate = load_certificate(endorsement.certificate)
        now = datetime.datetime.now(datetime.UTC)
        folder = self._state.vm(record.name)
        authorities = await asyncio.to_thread(self._authority.certificates, folder)
        verify_endorsement(certificate, endorsement.public, authorities, now)
        _require_made_for(certificate, record)
        value = secrets.token_bytes(32)
        credential = make_credential(endorsement.public, attesting.name, value)
        if not compare_digest(await attesting.activate(credential), value):
            raise TpmOfOther("the TPM did not answer the challenge to its key", value=record.name)
        made = StoredEnrolment(fingerprint(endorsement.public), attesting.public.encode(), now.isoformat())

        def apply(row: TrustRow) -> None:
            row.enrolment = {
                "endorsement": made.endorsement,
                "attestation_key": made.attestation_key.hex(),
                "time": made.time,
            }

        if keep:
            await self._records.change(record.id, apply, "trust.enrolled")
        return made


async def agent_of(owner: VmOwner) -> GuestAgent:
    owner.admits(Verb.AGENT)
    if owner.guest is None:
        raise AgentNotThere(
            f"VM {owner.record.name!r} has no guest agent, by which its TPM is asked",
            value=owner.record.name,
            cure="Install qemu-guest-agent in the guest and set `--guest-agent` on the VM.",
        )
    return await owner.guest.agent()


def fingerprint(public: Public) -> str:
    """SHA-256 of a key's SubjectPublicKeyInfo, hexadecimal."""
    return sha256(public.spki).hexdigest()


def _require_made_for(certificate: x509.Certificate, record: VmRecord) -> None:
    """The certificate's subject is the id of the VM that the TPM was made for (swtpm_setup, --vmid)."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    said = str(names[0].value) if len(names) == 1 else ""
    if said != tpm_identity(record.spec, record.id):
        raise TpmOfOther(
            f"the TPM in the guest was made for VM {said[:64]!r}, not for {record.name!r}",
            value=said[:64],
            cure="Attest the VM that it belongs to; a guest that shows another's TPM is not to be trusted.",
        )


def has_vtpm(record: VmRecord) -> bool:
    return isinstance(record.spec.boot, UefiBoot) and record.spec.boot.tpm


def require_vtpm(record: VmRecord) -> None:
    if not has_vtpm(record):
        raise NoVtpm(
            f"VM {record.name!r} has no vTPM, so nothing measures its boot",
            value=record.name,
            cure="Make a VM with one: that is the default.",
        )
