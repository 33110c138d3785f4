"""What a policy makes of a boot chain: each rule that does not hold is a finding.

First what holds for any boot that is called trusted (Secure Boot's own rules, checked again against
what was measured), then the rules that the policy gives. Pure: the policies belong to `vm/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.spec.trust import BOOT_PCRS, Bank, Baseline, SignerRule, TrustPolicy
from holdfast.trust.baseline import Difference, differences
from holdfast.trust.boot_chain import BootChain, name_events
from holdfast.trust.event_log import EventLog
from holdfast.trust.findings import Findings
from holdfast.trust.guest_text import printable
from holdfast.trust.measured import claims_grub_text, grub_text, has_false_data
from holdfast.trust.secure_boot_record import Authority, Lists, lists_of

_MOST_OF_A_PCR = 8


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot as its log tells it."""

    log: EventLog
    chain: BootChain
    pcrs: Mapping[int, bytes]
    """What the quote confirms; where it confirms nothing, what the log replays to."""
    known: Mapping[str, str]

    @property
    def bank(self) -> Bank:
        return self.chain.bank


def needed_pcrs(policy: TrustPolicy) -> frozenset[int]:
    """PCRs that a quote must cover, so that the policy can be decided."""
    named = {rule.pcr for rule in policy.required} | policy.pcr_values.keys()
    return frozenset(BOOT_PCRS) | named | set(policy.compare)


def check_boot(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    """Judge a boot under a policy; time is linear in the log, but for a bounded alignment."""
    _check_log(boot, findings)
    required = policy.secure_boot == "required"
    _check_secure_boot(boot, required, findings)
    if boot.chain.record.enabled or policy.signers is not None:
        _check_signers(policy, boot, findings)
    _check_programs(policy, boot, findings)
    _check_measurements(policy, boot, findings)
    _check_sbat(policy, boot, findings)
    _check_baseline(policy, boot, findings)


def _check_log(boot: Boot, findings: Findings) -> None:
    """The log must show what was measured, where what it shows is relied upon."""
    unexplained = {event.number for event, _ in boot.chain.record.unexplained}
    for event in boot.log.events:
        place = f"event {event.number} (PCR {event.pcr})"
        if event.number not in unexplained and has_false_data(event):
            findings.failure("log-data-false", f"{place} shows other data than were measured")
        elif claims_grub_text(event) and grub_text(event) is None:
            findings.warning("log-text-unproven", f"{place} shows a text of GRUB's that was not measured")
    for event, why in boot.chain.record.unexplained:
        findings.failure("event-unexplained", f"event {event.number} (PCR {event.pcr}): {why}")
    for event in boot.chain.odd:
        findings.failure(
            "event-unexplained",
            f"event {event.number} (PCR 4): {event.text_of(boot.bank)} is of type {event.kind:#x}, "
            "and not a program that was started",
        )


def _check_secure_boot(boot: Boot, required: bool, findings: Findings) -> None:
    record = boot.chain.record
    report = findings.failure if required else findings.info
    if record.enabled:
        findings.info("secure-boot-on", f"Secure Boot was on (PCR 7, event {record.event})")
    elif record.enabled is None:
        report("secure-boot-not-told", "the log does not tell whether Secure Boot was on")
    else:
        report("secure-boot-off", f"Secure Boot was off (PCR 7, event {record.event})")
    if not record.separated:
        report("separator-missing", "nothing in PCR 7 ends the firmware's configuration")
    if record.debug_mode:
        findings.failure("firmware-debug-mode", "the firmware ran in debug mode")
    if record.dma_unprotected:
        findings.warning("dma-unprotected", "the firmware says that protection against DMA was off")
    if record.shim_insecure:
        report("shim-validation-off", "shim was told to start programs without verifying them (MokSBState)")


def _check_signers(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    record, lists = boot.chain.record, lists_of(boot.chain.record)
    chained = record.shim and len(boot.chain.programs) > 1
    if not any(authority.of_firmware for authority in record.authorities):
        findings.failure(
            "loader-signer-unknown", "the log names no entry of db that accepted the first loader"
        )
    elif len(record.authorities) < 1 + chained:
        findings.failure(
            "loader-signer-unknown", "the log names no certificate that accepted what shim started"
        )
    accepted = set()
    for authority in record.authorities:
        signer = authority.signer
        place = f"{signer.subject} ({signer.source}; PCR 7, event {authority.event.number})"
        _check_authority(authority, place, lists, findings)
        if policy.signers is not None and not any(_matches(rule, authority) for rule in policy.signers):
            findings.failure("signer-not-accepted", f"{place} is not among the accepted signers")
        elif signer not in accepted:
            accepted.add(signer)
            findings.info("signer", f"loaders were accepted by {place}")


def _check_authority(authority: Authority, place: str, lists: Lists, findings: Findings) -> None:
    if authority.of_firmware and not lists.allows(authority):
        findings.failure(
            "signer-not-in-db", f"{place} accepted a loader, but is not in db as it was measured"
        )
    if lists.revokes(authority):
        findings.failure("signer-revoked", f"{place} accepted a loader, but is in dbx")


def _matches(rule: SignerRule, authority: Authority) -> bool:
    return rule.subject in (None, authority.signer.subject) and rule.fingerprint in (
        None,
        authority.signer.fingerprint,
    )


def _check_programs(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    chain, lists = boot.chain, lists_of(boot.chain.record)
    if not chain.programs:
        findings.failure("chain-empty", "the log names no program that the firmware started")
    images = None if policy.images is None else frozenset(policy.images)
    for program in chain.programs:
        digest = program.event.text_of(boot.bank)
        place = _said(digest, program.role.value, program.event.number, 4, boot.known)
        if program.event.digests.get(Bank.SHA256) in lists.images:
            findings.failure("loader-revoked", f"{place} is in dbx")
        if images is not None and digest not in images:
            findings.failure("loader-not-accepted", f"{place} is not among the accepted programs")


def _check_measurements(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    measured = {(event.pcr, event.text_of(boot.bank)) for event in boot.log.events}
    for rule in policy.required:
        if (rule.pcr, rule.digest) not in measured:
            what = printable(rule.what, 100) or "a required measurement"
            findings.failure("measurement-missing", f"{what}: PCR {rule.pcr} has no {rule.digest}")
    forbidden = frozenset(policy.forbidden)
    for event in boot.log.events if forbidden else ():
        digest = event.text_of(boot.bank)
        if digest in forbidden:
            findings.failure(
                "measurement-forbidden",
                f"event {event.number} (PCR {event.pcr}) is {digest}, known to be bad",
            )
    for pcr, wanted in policy.pcr_values.items():
        value = boot.pcrs[pcr].hex() if pcr in boot.pcrs else ""
        if value not in wanted:
            findings.failure("pcr-value-not-accepted", f"PCR {pcr} is {value or 'not known'}")


def _check_sbat(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    level = boot.chain.record.sbat
    for component, least in policy.minimum_sbat.items():
        if level is None:
            findings.failure(
                "sbat-level-missing", f"no shim told an SBAT level; {component} {least} is wanted"
            )
        elif level.get(component, 0) < least:
            findings.failure(
                "sbat-level-low",
                f"shim accepts {component} from generation {level.get(component, 0)} on; {least} is wanted",
            )


def _check_baseline(policy: TrustPolicy, boot: Boot, findings: Findings) -> None:
    baseline = policy.baseline
    if baseline is None:
        return
    if baseline.bank is not boot.bank:
        findings.failure(
            "baseline-of-other-bank", f"the baseline is of {baseline.bank}, and this boot of {boot.bank}"
        )
        return
    names = name_events(boot.log, boot.chain)
    same = True
    for pcr in sorted({*BOOT_PCRS, *policy.compare}):
        value = boot.pcrs[pcr].hex() if pcr in boot.pcrs else None
        if value == baseline.pcrs.get(pcr):
            continue
        watched = pcr in policy.compare
        same = same and not watched
        whole = f"PCR {pcr} was {baseline.pcrs.get(pcr)}, is now {value}"
        for text in _changes(baseline, boot, names, pcr) or [whole]:
            if watched:
                findings.failure("boot-chain-changed", text)
            else:
                findings.info("measurement-differs", text)
    if same:
        compared = ", ".join(str(pcr) for pcr in sorted(policy.compare))
        findings.info("baseline-matches", f"PCRs {compared} are as in the baseline")


def _changes(baseline: Baseline, boot: Boot, names: Mapping[int, str], pcr: int) -> list[str]:
    """What differs in one PCR, in words: the first few, so that none hides what another PCR tells."""
    told: dict[object, str] = {}
    for difference in differences(baseline, boot.log, pcr):
        text, key = _difference(difference, names, boot)
        told.setdefault(key, text)
    texts = list(told.values())
    left = len(texts) - _MOST_OF_A_PCR
    return [*texts[:_MOST_OF_A_PCR], f"{left} more events of PCR {pcr} differ"] if left > 1 else texts


def _difference(difference: Difference, names: Mapping[int, str], boot: Boot) -> tuple[str, object]:
    """In words; and by what the same change is known where it was measured twice."""
    was, now, pcr = difference.before, difference.after, difference.pcr
    new = now.text_of(boot.bank) if now else ""
    new_said = f"{boot.known[new]}, {new}" if new in boot.known else new
    key = (was.digest if was else "", new)
    if was is None and now is not None:
        return f"{names[now.number]} (PCR {pcr}, event {now.number}) is new: {new_said}", key
    if was is not None and now is None:
        return f"{was.text} (PCR {pcr}) was {was.digest}, is gone", key
    assert was is not None and now is not None  # noqa: S101 - a difference has one side at least
    text = f"{was.text} (PCR {pcr}, event {now.number}) was {was.digest}, is now {new_said}"
    name = names[now.number]
    return (text if name == was.text else f"{text} ({name})"), key


def _said(digest: str, what: str, number: int, pcr: int, known: Mapping[str, str]) -> str:
    name = known.get(digest)
    return f"{what} (PCR {pcr}, event {number}) {digest}{f', {name},' if name else ''}"
