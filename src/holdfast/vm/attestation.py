"""Whether a running VM is what it should be: evidence gathered, judged, and kept as a verdict.

    TPM identity known? ─no─▶ enrol: certificate of our authority, credential activation
      │
    fresh nonce ─▶ quote by the attestation key ─▶ event log ─▶ judge(policy) ─▶ history, event

Everything but the enrolment is the guest's word until the quote proves it. The record is changed
here alone; the guest is only read.
"""

import asyncio
import datetime
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdfast.catalog.tables import TrustRow
from holdfast.operations.engine import Operations
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.attestation import Enrolment, PolicyAnswer, Schedule, TrustView, VmVerdict
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.trust import BOOT_PCRS, Bank, Finding, Severity, TrustPolicy, Verdict
from holdfast.spec.vm import UefiBoot
from holdfast.trust.attestation_key import Attester, attester
from holdfast.trust.endorsement_certificate import EndorsementNotTrusted, load_certificate, verify_endorsement
from holdfast.trust.policy import needed_pcrs
from holdfast.trust.tpm.credential import make_credential
from holdfast.trust.tpm.pcrs import PcrSelection
from holdfast.trust.verdict import Evidence, explain_change, judge, learn_policy
from holdfast.vm.admission import Verb
from holdfast.vm.firmware_state import NoVtpm
from holdfast.vm.guest import AgentNotThere
from holdfast.vm.guest_tpm import open_guest_tpm, read_event_log
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import VmRecord
from holdfast.vm.trust_records import StoredEnrolment, TrustRecord, TrustRecords

Progress = Callable[[float, str], None]


class TpmOfOther(Failed):
    """The TPM in the guest is not the one that this host made for the VM."""

    id = "tpm-of-other"


class Authority(Protocol):
    """Who vouches for the endorsement keys of this host's VMs."""

    def certificates(self) -> list[x509.Certificate]: ...


@dataclass(frozen=True)
class _Gathered:
    evidence: Evidence
    changed: bool
    """The TPM's attestation key is another than the one enrolled."""


class Attestation:
    """`named` finds a VM's owner by name or id, with its record as it now is."""

    def __init__(
        self,
        records: TrustRecords,
        authority: Authority,
        operations: Operations,
        named: Callable[[str], Awaitable[VmOwner]],
    ) -> None:
        self._records = records
        self._operations = operations
        self._authority = authority
        self._named = named

    async def begin(self, name: str, actor: str) -> Operation:
        """Attest as an operation, whose result is the verdict.

        Raises:
            VmNotFound, NoVtpm, AgentNotThere, the refusal of a VM that does not run.
        """
        owner = await self._named(name)
        _require_vtpm(owner.record)
        await _agent(owner)
        return await self._operations.submit("vm.attest", owner.record.name, {"vm": owner.record.id}, actor)

    async def attest(self, name: str, progress: Progress = lambda *_: None) -> VmVerdict:
        """A fresh verdict, kept in the history.

        Raises:
            NoVtpm, AgentNotThere, NoGuestTpm, ...: there is no evidence to be had.
        """
        owner = await self._named(name)
        stored = await self._records.get(owner.record.id)
        verdict = await self._judged(owner, stored, progress)
        return await self._records.add(owner.record.id, verdict)

    async def attest_on_schedule(self, vm_id: str) -> None:
        """As `attest`; a running VM that gives no evidence has failed."""
        try:
            await self.attest(vm_id)
        except HoldfastError as error:
            owner = await self._named(vm_id)
            if owner.machine is None:
                return
            missing = Finding(id="no-evidence", severity=Severity.FAILURE, text=error.message)
            policy = (await self._records.get(vm_id)).policy
            await self._records.add(
                vm_id,
                Verdict(
                    verdict="fail",
                    findings=(missing,),
                    bank=Bank.SHA256,
                    pcrs={},
                    chain=(),
                    policy=policy.name,
                    attested=False,
                ),
            )

    async def show(self, name: str) -> TrustView:
        owner = await self._named(name)
        stored = await self._records.get(owner.record.id)
        verdict = await self._records.last(owner.record.id)
        if verdict is None and owner.machine is not None and _has_vtpm(owner.record):
            seen = await self._judged(owner, stored, lambda *_: None)
            verdict = VmVerdict(
                **seen.model_dump(), number=0, vm=owner.record.name, time=datetime.datetime.now(datetime.UTC)
            )
            stored = await self._records.get(owner.record.id)
        return TrustView(
            vm=owner.record.name,
            enrolment=_shown(stored.enrolment),
            policy=stored.policy,
            interval_seconds=stored.interval_seconds,
            verdict=verdict,
        )

    async def passed(self) -> dict[str, bool]:
        """The last verdict on each VM that has one, by the VM's name."""
        return await self._records.passed()

    async def history(self, name: str, query: PageQuery) -> Page[VmVerdict]:
        return await self._records.history((await self._named(name)).record.id, query)

    async def forget(self, name: str) -> None:
        """Forget the TPM's identity: the next attestation enrols the TPM that is there then."""

        def apply(row: TrustRow) -> None:
            row.enrolment = None

        await self._records.change((await self._named(name)).record.id, apply, "trust.identity-forgotten")

    async def schedule(self, name: str, wanted: Schedule) -> TrustView:
        def apply(row: TrustRow) -> None:
            row.interval_seconds = wanted.interval_seconds

        owner = await self._named(name)
        _require_vtpm(owner.record)
        await self._records.change(owner.record.id, apply, "trust.schedule-changed")
        return await self.show(name)

    # Policy

    async def policy(self, name: str) -> TrustPolicy:
        return (await self._records.get((await self._named(name)).record.id)).policy

    async def learn(self, name: str, dry_run: bool) -> PolicyAnswer:
        """The VM's boot as it is now becomes the baseline of its policy.

        Raises:
            EvidenceUnproven: the boot does not pass even without a baseline.
        """
        owner = await self._named(name)
        stored = await self._records.get(owner.record.id)
        evidence = (await self._gather(owner, stored.policy, lambda *_: None)).evidence
        learned = learn_policy(evidence, f"{owner.record.name}"[:100], stored.policy.compare)
        policy = stored.policy.model_copy(
            update={
                "name": learned.name,
                "baseline": learned.baseline,
                "secure_boot": learned.secure_boot,
            }
        )
        return await self._adopt(owner, stored, policy, evidence, dry_run)

    async def set_policy(self, name: str, policy: TrustPolicy, dry_run: bool) -> PolicyAnswer:
        """A new policy, judged on the VM as it runs now where it does."""
        owner = await self._named(name)
        _require_vtpm(owner.record)
        stored = await self._records.get(owner.record.id)
        evidence = None
        if owner.machine is not None and owner.guest is not None:
            wide = policy.model_copy(
                update={"compare": tuple({*policy.compare, *needed_pcrs(stored.policy)})}
            )
            evidence = (await self._gather(owner, wide, lambda *_: None)).evidence
        return await self._adopt(owner, stored, policy, evidence, dry_run)

    async def _adopt(
        self,
        owner: VmOwner,
        stored: TrustRecord,
        policy: TrustPolicy,
        evidence: Evidence | None,
        dry_run: bool,
    ) -> PolicyAnswer:
        change = explain_change(stored.policy, policy, evidence) if evidence else None

        def apply(row: TrustRow) -> None:
            row.policy = policy.model_dump(mode="json")

        if not dry_run:
            await self._records.change(owner.record.id, apply, "trust.policy-changed")
        return PolicyAnswer(policy=policy, stored=not dry_run, change=change)

    # Evidence

    async def _judged(self, owner: VmOwner, stored: TrustRecord, progress: Progress) -> Verdict:
        gathered = await self._gather(owner, stored.policy, progress)
        verdict = judge(gathered.evidence, stored.policy)
        if not gathered.changed:
            return verdict
        changed = Finding(
            id="tpm-changed",
            severity=Severity.FAILURE,
            text="the TPM in the guest is another than the one that was enrolled",
        )
        return verdict.model_copy(update={"verdict": "fail", "findings": (changed, *verdict.findings)})

    async def _gather(self, owner: VmOwner, policy: TrustPolicy, progress: Progress) -> _Gathered:
        _require_vtpm(owner.record)
        agent = await _agent(owner)
        selection = PcrSelection.of({*BOOT_PCRS, *needed_pcrs(policy)})
        nonce = secrets.token_bytes(32)
        progress(0.0, "opening the guest's TPM")
        async with open_guest_tpm(agent) as tpm, attester(tpm) as attesting:
            progress(0.3, "proving the TPM's identity")
            stored = (await self._records.get(owner.record.id)).enrolment
            enrolled = stored or await self._enrol(owner.record, attesting)
            progress(0.6, "asking for a quote")
            quote = await attesting.quote(nonce, selection)
            pcrs = await tpm.pcr_read(selection)
            changed = attesting.public.encode() != enrolled.attestation_key
        progress(0.9, "reading the event log")
        evidence = Evidence(
            attestation_key=enrolled.attestation_key,
            nonce=nonce,
            attest=quote.attest,
            signature=quote.signature,
            log=await read_event_log(agent),
            pcrs={Bank.SHA256: pcrs},
        )
        return _Gathered(evidence, changed)

    async def _enrol(self, record: VmRecord, attesting: Attester) -> StoredEnrolment:
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
        verify_endorsement(
            certificate, endorsement.public, await asyncio.to_thread(self._authority.certificates), now
        )
        _require_made_for(certificate, record)
        value = secrets.token_bytes(32)
        credential = make_credential(endorsement.public, attesting.name, value)
        if not compare_digest(await attesting.activate(credential), value):
            raise TpmOfOther("the TPM did not answer the challenge to its key", value=record.name)
        spki = endorsement.public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        made = StoredEnrolment(sha256(spki).hexdigest(), attesting.public.encode(), now.isoformat())

        def apply(row: TrustRow) -> None:
            row.enrolment = {
                "endorsement": made.endorsement,
                "attestation_key": made.attestation_key.hex(),
                "time": made.time,
            }

        await self._records.change(record.id, apply, "trust.enrolled")
        return made


async def _agent(owner: VmOwner) -> GuestAgent:
    owner.admits(Verb.AGENT)
    if owner.guest is None:
        raise AgentNotThere(
            f"VM {owner.record.name!r} has no guest agent, by which its TPM is asked",
            value=owner.record.name,
            cure="Install qemu-guest-agent in the guest and set `--guest-agent` on the VM.",
        )
    return await owner.guest.agent()


def _require_made_for(certificate: x509.Certificate, record: VmRecord) -> None:
    """The certificate's subject is the id of the VM that the TPM was made for (swtpm_setup, --vmid)."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    said = str(names[0].value) if len(names) == 1 else ""
    if said != record.id:
        raise TpmOfOther(
            f"the TPM in the guest was made for VM {said[:64]!r}, not for {record.name!r}",
            value=said[:64],
            cure="Attest the VM that it belongs to; a guest that shows another's TPM is not to be trusted.",
        )


def _has_vtpm(record: VmRecord) -> bool:
    return isinstance(record.spec.boot, UefiBoot) and record.spec.boot.tpm


def _require_vtpm(record: VmRecord) -> None:
    if not _has_vtpm(record):
        raise NoVtpm(
            f"VM {record.name!r} has no vTPM, so nothing measures its boot",
            value=record.name,
            cure="Make a VM with one: that is the default.",
        )


def _shown(stored: StoredEnrolment | None) -> Enrolment | None:
    if stored is None:
        return None
    name = b"\x00\x0b" + sha256(stored.attestation_key).digest()  # TPM_ALG_SHA256 (part 1, section 16)
    return Enrolment(
        time=datetime.datetime.fromisoformat(stored.time),
        endorsement=stored.endorsement,
        attestation_key=name.hex(),
    )
