"""Whether a running VM is what it should be: evidence gathered, judged, and kept as a verdict.

    evidence (`guest_evidence`) ─▶ judge(policy) ─▶ history, event

Trust's record is changed here and at the enrolment alone; the guest is only read.
"""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from holdfast.catalog.tables import TrustRow
from holdfast.operations.engine import Operations
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.attestation import Enrolment, PolicyAnswer, Schedule, TrustView, VmVerdict
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.trust import Bank, Finding, Severity, TrustPolicy, Verdict
from holdfast.trust.attestation_key import Attester
from holdfast.trust.guest_text import printable
from holdfast.trust.tpm.public import Public
from holdfast.trust.verdict import Evidence, explain_change, judge, learn_policy
from holdfast.vm.guest_evidence import Asked, GuestEvidence, Progress, agent_of, has_vtpm, require_vtpm
from holdfast.vm.owner import VmOwner
from holdfast.vm.trust_records import StoredEnrolment, TrustRecord, TrustRecords

log = structlog.get_logger(__name__)


class VerdictFailed(Conflict):
    """What needs a good verdict meets a bad one; the value is the ids of its failures."""

    id = "verdict-failed"


@dataclass(frozen=True)
class Trusted:
    """A guest that has just passed, its TPM still open."""

    verdict: VmVerdict
    attesting: Attester
    endorsement: str
    """SHA-256 of the enrolled endorsement key's SubjectPublicKeyInfo, hexadecimal."""
    agent: GuestAgent


class Attestation:
    """`named` finds a VM's owner by name or id, with its record as it now is."""

    def __init__(
        self,
        records: TrustRecords,
        evidence: GuestEvidence,
        operations: Operations,
        named: Callable[[str], Awaitable[VmOwner]],
    ) -> None:
        self._records = records
        self._operations = operations
        self._evidence = evidence
        self._named = named

    async def require_attestable(self, name: str) -> str:
        """The VM's id, where it can be asked now.

        Raises:
            VmNotFound, NoVtpm, AgentNotThere, the refusal of a VM that does not run.
        """
        owner = await self._named(name)
        require_vtpm(owner.record)
        await agent_of(owner)
        return owner.record.id

    async def begin(self, name: str, actor: str) -> Operation:
        """Attest as an operation, whose result is the verdict. Raises as `require_attestable`."""
        vm_id = await self.require_attestable(name)
        return await self._operations.submit("vm.attest", name, {"vm": vm_id}, actor)

    async def attest(self, name: str, progress: Progress = lambda *_: None) -> VmVerdict:
        """A fresh verdict, kept in the history.

        Raises:
            NoVtpm, AgentNotThere, NoGuestTpm, ...: there is no evidence to be had.
        """
        owner = await self._named(name)
        policy = (await self._records.get(owner.record.id)).policy
        async with self._evidence.ask(owner, policy, progress=progress) as asked:
            pass
        return await self._records.add(owner.record.id, await _judged(asked, policy))

    @contextlib.asynccontextmanager
    async def trusted(self, name: str, progress: Progress = lambda *_: None) -> AsyncIterator[Trusted]:
        """A guest that passes at this moment, for something that only such a one may have.

        Raises:
            VerdictFailed: it does not pass; the verdict is kept all the same. And as `attest`.
        """
        owner = await self._named(name)
        policy = (await self._records.get(owner.record.id)).policy
        async with self._evidence.ask(owner, policy, progress=progress) as asked:
            verdict = await self._records.add(owner.record.id, await _judged(asked, policy))
            if verdict.verdict != "pass":
                raise _refused(owner.record.name, verdict)
            yield Trusted(verdict, asked.attesting, asked.enrolled.endorsement, asked.agent)

    async def attest_on_schedule(self, vm_id: str) -> None:
        """As `attest`; a VM that ran all the while and gave no evidence has failed."""
        owner = await self._named(vm_id)
        boot = owner.boot
        policy = (await self._records.get(vm_id)).policy
        try:
            async with self._evidence.ask(owner, policy) as asked:
                pass
            verdict = await _judged(asked, policy)
        except Exception as error:
            if boot is None or owner.boot != boot:
                return
            log.warning("a VM gives no evidence", vm=owner.record.name, exc_info=error)
            verdict = _without_evidence(policy, str(error))
        await self._records.add(vm_id, verdict)

    async def show(self, name: str) -> TrustView:
        """What is known; of a running VM without a verdict, what can be seen now: nothing of that is kept."""
        owner = await self._named(name)
        verdict = await self._records.last(owner.record.id)
        if verdict is None and owner.boot is not None and has_vtpm(owner.record):
            with contextlib.suppress(HoldfastError):
                verdict = await self._seen(owner)
        return await self._view(owner, verdict)

    async def _seen(self, owner: VmOwner) -> VmVerdict:
        policy = (await self._records.get(owner.record.id)).policy
        async with self._evidence.ask(owner, policy, keep_identity=False) as asked:
            pass
        judged = await _judged(asked, policy)
        now = datetime.datetime.now(datetime.UTC)
        return VmVerdict(**judged.model_dump(), number=0, vm=owner.record.name, time=now)

    async def _view(self, owner: VmOwner, verdict: VmVerdict | None) -> TrustView:
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
        require_vtpm(owner.record)
        await self._records.change(owner.record.id, apply, "trust.schedule-changed")
        return await self._view(owner, await self._records.last(owner.record.id))

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
        async with self._evidence.ask(owner, stored.policy) as asked:
            evidence = asked.evidence
        learned = await asyncio.to_thread(
            learn_policy, evidence, owner.record.name[:100], stored.policy.compare
        )
        update = {each: getattr(learned, each) for each in ("name", "baseline", "secure_boot")}

        def with_baseline(before: TrustPolicy) -> TrustPolicy:
            return before.model_copy(update=update)

        return await self._adopt(owner, stored, with_baseline, evidence, dry_run)

    async def set_policy(self, name: str, policy: TrustPolicy, dry_run: bool) -> PolicyAnswer:
        """A new policy; what it changes is said of a VM that runs and can be asked."""
        owner = await self._named(name)
        require_vtpm(owner.record)
        stored = await self._records.get(owner.record.id)
        evidence = None
        if owner.boot is not None:
            with contextlib.suppress(HoldfastError):
                async with self._evidence.ask(owner, stored.policy, policy, keep_identity=False) as asked:
                    evidence = asked.evidence
        return await self._adopt(owner, stored, lambda _: policy, evidence, dry_run)

    async def _adopt(
        self,
        owner: VmOwner,
        stored: TrustRecord,
        change: Callable[[TrustPolicy], TrustPolicy],
        evidence: Evidence | None,
        dry_run: bool,
    ) -> PolicyAnswer:
        """`change` is applied to the policy as it is when it is stored: others may have set one meanwhile."""
        policy = change(stored.policy)
        effect = (
            await asyncio.to_thread(explain_change, stored.policy, policy, evidence) if evidence else None
        )

        def apply(row: TrustRow) -> None:
            before = TrustPolicy.model_validate(row.policy) if row.policy else TrustPolicy()
            row.policy = change(before).model_dump(mode="json")

        if not dry_run:
            policy = (await self._records.change(owner.record.id, apply, "trust.policy-changed")).policy
        return PolicyAnswer(policy=policy, stored=not dry_run, change=effect)


def _without_evidence(policy: TrustPolicy, why: str) -> Verdict:
    missing = Finding(id="no-evidence", severity=Severity.FAILURE, text=printable(why, 500))
    return Verdict(
        verdict="fail",
        findings=(missing,),
        bank=Bank.SHA256,
        pcrs={},
        chain=(),
        policy=policy.name,
        attested=False,
    )


async def _judged(asked: Asked, policy: TrustPolicy) -> Verdict:
    """In a thread: a hostile log can take a while."""
    verdict = await asyncio.to_thread(judge, asked.evidence, policy)
    if not asked.changed:
        return verdict
    changed = Finding(
        id="tpm-changed",
        severity=Severity.FAILURE,
        text="the TPM in the guest is another than the one that was enrolled",
    )
    return verdict.model_copy(update={"verdict": "fail", "findings": (changed, *verdict.findings)})


def _refused(name: str, verdict: VmVerdict) -> VerdictFailed:
    failures = [each for each in verdict.findings if each.severity is Severity.FAILURE]
    return VerdictFailed(
        f"VM {name!r} does not pass: {'; '.join(each.text for each in failures)[:500]}",
        value=list(dict.fromkeys(each.id for each in failures)),
        cure=f"See `holdfast trust show {name}`; mend the guest, or change its policy if this is meant.",
        detail={"verdict": verdict.number},
    )


def _shown(stored: StoredEnrolment | None) -> Enrolment | None:
    if stored is None:
        return None
    return Enrolment(
        time=datetime.datetime.fromisoformat(stored.time),
        endorsement=stored.endorsement,
        attestation_key=Public.decode(stored.attestation_key).name.hex(),
    )
