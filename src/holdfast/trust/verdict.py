"""From evidence to a verdict: quote, log and policy judged together, everything that is wrong told.

    attestation key, nonce ─▶ signature over the quote ─▶ quoted PCRs ─▶ replayed log ─▶ chain ─▶ policy

Evidence is a guest's word: whatever it is, a verdict comes out, and never an error. Nothing is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.spec.errors import Conflict, Failed
from holdfast.spec.trust import (
    BOOT_PCRS,
    COMPARED_PCRS,
    Bank,
    PolicyChange,
    Severity,
    TrustPolicy,
    Verdict,
)
from holdfast.trust.baseline import make_baseline
from holdfast.trust.boot_chain import name_events, read_chain
from holdfast.trust.event_log import EventLog, LogMalformed, LogPadded, LogTooLarge, LogTruncated, parse_log
from holdfast.trust.event_log import replay as replay_log
from holdfast.trust.findings import Findings
from holdfast.trust.policy import Boot, check_boot, needed_pcrs
from holdfast.trust.quote import (
    AttestationKeyUnfit,
    NonceMismatch,
    NotAQuote,
    Quote,
    QuoteMalformed,
    SignatureInvalid,
    SignatureMalformed,
    check_nonce,
    check_signature,
    digest_of,
    parse_quote,
    read_attestation_key,
)

# The best that is usual first: policies and lists of revoked programs are in SHA-256.
_PREFERRED = (Bank.SHA256, Bank.SHA384, Bank.SHA512)


class EvidenceUnproven(Conflict):
    id = "evidence-unproven"


@dataclass(frozen=True, slots=True)
class Evidence:
    attestation_key: bytes
    """TPMT_PUBLIC of the key that was enrolled; the only part that is not the guest's word."""
    nonce: bytes
    """What was asked, never asked before."""
    attest: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE."""
    log: bytes
    """binary_bios_measurements."""
    pcrs: Mapping[Bank, Mapping[int, bytes]] = field(default_factory=dict)
    """What the guest says that the PCRs are. Needed where PCRs are quoted that no log explains; with
    them, the verdict can name the PCRs that do not replay."""


def judge(
    evidence: Evidence, policy: TrustPolicy | None = None, known: Mapping[str, str] | None = None
) -> Verdict:
    """The verdict on one piece of evidence.

    Args:
        policy: the default one where it is None.
        known: digests (`sha256:...`) to names under which people know them.
    """
    return _Case(evidence, policy or TrustPolicy(), known or {}).verdict()


def explain_change(
    old: TrustPolicy, new: TrustPolicy, evidence: Evidence, known: Mapping[str, str] | None = None
) -> PolicyChange:
    """What another policy would change, on evidence that is at hand; nothing is done."""
    before, after = judge(evidence, old, known), judge(evidence, new, known)
    changes = tuple(
        f"{name}: {_rule(getattr(old, name))} becomes {_rule(getattr(new, name))}"
        for name in TrustPolicy.model_fields
        if getattr(old, name) != getattr(new, name)
    )
    if before.verdict != after.verdict:
        text = f"The verdict on this evidence would change from {before.verdict} to {after.verdict}."
    elif before.findings != after.findings:
        text = f"The verdict on this evidence would stay {after.verdict}, with other findings."
    else:
        text = f"The verdict on this evidence would stay {after.verdict}."
    return PolicyChange(
        changes=changes,
        before=before,
        after=after,
        appearing=tuple(each for each in after.findings if each not in before.findings),
        vanishing=tuple(each for each in before.findings if each not in after.findings),
        text=text,
    )


def learn_policy(
    evidence: Evidence,
    name: str,
    compare: tuple[int, ...] = COMPARED_PCRS,
    known: Mapping[str, str] | None = None,
) -> TrustPolicy:
    """The policy that this boot, and no other, passes: its measurements become the baseline.

    Secure Boot is demanded if it was on.

    Raises:
        EvidenceUnproven: the evidence fails even without a baseline; the detail holds the findings.
    """
    case = _Case(evidence, TrustPolicy(secure_boot="optional"), known or {})
    verdict = case.verdict()
    if verdict.verdict == "fail" or not verdict.attested or case.boot is None:
        failures = [each.model_dump() for each in verdict.findings if each.severity is Severity.FAILURE]
        raise EvidenceUnproven(
            "nothing can be learned from a boot that is not proven",
            value=[each["id"] for each in failures],
            cure="See the findings; boot the VM anew with Secure Boot and a good image, then learn.",
            detail={"findings": failures},
        )
    boot = case.boot
    missing = sorted(set(compare) - boot.pcrs.keys())
    if missing:
        raise EvidenceUnproven(
            f"nothing tells what PCRs {', '.join(map(str, missing))} were",
            value=missing,
            cure="Leave them out of the policy's `compare`.",
        )
    baseline = make_baseline(boot.log, boot.bank, boot.pcrs, name_events(boot.log, boot.chain))
    secure = "required" if boot.chain.record.enabled else "optional"
    return TrustPolicy.model_validate(
        {"name": name, "secure_boot": secure, "compare": compare, "baseline": baseline}
    )


class _Case:
    """One judgement; each step adds its findings and leaves what the next can use."""

    def __init__(self, evidence: Evidence, policy: TrustPolicy, known: Mapping[str, str]) -> None:
        self._evidence = evidence
        self._policy = policy
        self._known = known
        self._findings = Findings()
        self._hash = ""
        self.boot: Boot | None = None

    def verdict(self) -> Verdict:
        quote, genuine = self._quote()
        log = self._log()
        bank = self._bank(quote, log)
        replayed = self._replay(log, bank)
        confirmed = self._confirm(quote, log, bank, replayed) if quote else None
        attested = genuine and confirmed is not None and self._replays(confirmed, replayed)
        if log is not None and replayed:
            pcrs = confirmed if attested and confirmed is not None else replayed
            log = log.only(bank, pcrs)
            chain = read_chain(log, bank, self._known)
            self.boot = Boot(log, chain, pcrs, self._known)
            check_boot(self._policy, self.boot, self._findings)
        shown = confirmed if confirmed is not None else replayed
        return Verdict(
            verdict="fail" if self._findings.failed or not attested else "pass",
            findings=self._findings.all(),
            bank=bank,
            pcrs={pcr: shown[pcr].hex() for pcr in sorted(shown)},
            chain=self.boot.chain.links if self.boot else (),
            policy=self._policy.name,
            attested=attested,
            reset_count=quote.reset_count if quote and genuine else None,
        )

    def _quote(self) -> tuple[Quote | None, bool]:
        """The quote, if it can be read; and whether the enrolled key made it for this nonce."""
        evidence, genuine, quote = self._evidence, False, None
        try:
            key = read_attestation_key(evidence.attestation_key)
            self._hash = check_signature(key, evidence.attest, evidence.signature)
            genuine = True
        except (AttestationKeyUnfit, SignatureMalformed, SignatureInvalid) as error:
            self._refused(error)
        try:
            quote = parse_quote(evidence.attest)
            check_nonce(quote, evidence.nonce)
        except (NotAQuote, QuoteMalformed, NonceMismatch) as error:
            self._refused(error)
            genuine = False
        if genuine:
            self._findings.info("quote-valid", "the enrolled attestation key signed the quote for this nonce")
        return quote, genuine

    def _log(self) -> EventLog | None:
        if not self._evidence.log:
            self._findings.failure("log-missing", "there is no event log")
            return None
        try:
            return parse_log(self._evidence.log)
        except (LogMalformed, LogTruncated, LogPadded, LogTooLarge) as error:
            self._refused(error)
            return None

    def _bank(self, quote: Quote | None, log: EventLog | None) -> Bank:
        """The bank that is judged: one that both log and quote have, SHA-1 never."""
        logged = [bank for bank in _PREFERRED if log and bank in log.banks]
        quoted = [bank for bank in _PREFERRED if quote and quote.pcrs(bank)]
        both = [bank for bank in logged if bank in quoted]
        if log is not None and not logged:
            self._findings.failure("bank-too-weak", "the log has no digests of SHA-256 or better")
        elif quote is not None and log is not None and not both:
            self._findings.failure("quote-of-other-bank", "the quote is of no bank that the log has")
        bank = (both or logged or quoted or [Bank.SHA256])[0]
        if quote is not None:
            missing = sorted(needed_pcrs(self._policy) - quote.pcrs(bank))
            if missing:
                listed = ", ".join(str(pcr) for pcr in missing)
                self._findings.failure("quote-incomplete", f"PCRs {listed} of {bank} are not in the quote")
        return bank

    def _replay(self, log: EventLog | None, bank: Bank) -> dict[int, bytes]:
        """Values by the log; boot PCRs that it does not extend are as after a reset."""
        if log is None or bank not in log.banks:
            return {}
        return {**dict.fromkeys(BOOT_PCRS, bytes(bank.size)), **replay_log(log, bank)}

    def _confirm(
        self, quote: Quote, log: EventLog | None, bank: Bank, replayed: Mapping[int, bytes]
    ) -> dict[int, bytes] | None:
        """The values that the quote confirms: those the guest tells, else those of the log."""
        reported = self._evidence.pcrs
        if not reported:
            if not replayed:
                return None
            values = {each: self._replay(log, each) for each in Bank if quote.pcrs(each)}
            digest = digest_of(quote, values, self._hash or "sha256")
            if digest == quote.digest:
                return {pcr: replayed[pcr] for pcr in quote.pcrs(bank)}
            if digest is None:
                text = "PCRs were quoted that the log does not explain, and the guest does not tell them"
                self._findings.failure("pcrs-missing", text)
                return None
            self._findings.failure(
                "log-does-not-replay", "the log's events do not give the PCRs that were quoted"
            )
            return None
        if digest_of(quote, reported, self._hash or "sha256") != quote.digest:
            self._findings.failure(
                "pcrs-not-quoted", "the PCRs that the guest tells are not those of the quote"
            )
            return None
        told = reported.get(bank, {})
        return {pcr: told[pcr] for pcr in quote.pcrs(bank) if pcr in told}

    def _replays(self, confirmed: Mapping[int, bytes], replayed: Mapping[int, bytes]) -> bool:
        """Every confirmed PCR that the log speaks of must be as the log says."""
        wrong = sorted(pcr for pcr in confirmed.keys() & replayed.keys() if confirmed[pcr] != replayed[pcr])
        if wrong:
            listed = ", ".join(str(pcr) for pcr in wrong)
            self._findings.failure(
                "log-does-not-replay", f"the log's events do not give PCRs {listed} as they were quoted"
            )
        elif replayed and set(BOOT_PCRS) <= confirmed.keys():
            self._findings.info("log-replays", "the log's events give just the PCRs that were quoted")
        return bool(replayed) and not wrong and set(BOOT_PCRS) <= confirmed.keys()

    def _refused(self, error: Failed) -> None:
        self._findings.failure(error.id, error.message)


def _rule(value: object) -> str:
    """A rule's value in few words."""
    if value is None or value == () or value == {}:
        return "none"
    text = repr(value) if isinstance(value, str | int | tuple | dict) else "a learned boot"
    return text if len(text) <= 200 else text[:197] + "..."
