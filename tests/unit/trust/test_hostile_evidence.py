"""More than 100,000 hostile logs, quotes, signatures and keys: only named refusals, no hang, no forgery.

Those of `test_many` are ten times as many with another seed.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from boots import (
    DBX,
    LOG,
    Entry,
    SoftTpm,
    changed,
    draft,
    real,
    values,
    variable,
    written,
)
from mutations import mutated, mutated_events

from holdfast.spec.trust import BOOT_PCRS, LinkRole, Severity, Verdict
from holdfast.trust.boot_chain import name_events, read_chain
from holdfast.trust.event_log import LogMalformed, LogPadded, LogTooLarge, LogTruncated, parse_log, replay
from holdfast.trust.quote import (
    AttestationKeyUnfit,
    NotAQuote,
    QuoteMalformed,
    SignatureInvalid,
    SignatureMalformed,
    check_signature,
    parse_quote,
    read_attestation_key,
)
from holdfast.trust.verdict import judge, learn_policy

LOG_REFUSALS = (LogMalformed, LogPadded, LogTooLarge, LogTruncated)
SLOWEST = 5.0
"""Seconds of CPU for any one input, on a slow machine."""


def compact() -> list[Entry]:
    """The real log without what is large or many: the keys' certificates, GRUB's commands."""
    entries = draft()
    small = {number: variable(number, b"") for number in range(5, 8)}
    kept = []
    for number, entry in enumerate(entries, 1):
        if number in small:
            entry = Entry(entry.pcr, entry.kind, hashlib.sha256(small[number]).digest(), small[number])
        if not 32 <= number <= 46:
            kept.append(entry)
    return kept


@contextmanager
def timed() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < SLOWEST


def fuzz_logs(count: int, seed: int) -> Counter[str]:
    """Bytes of a log changed: parsed, replayed and read as a chain, or refused by name."""
    source, log, seen = random.Random(seed), written(compact()), Counter[str]()
    for _ in range(count):
        data = mutated(log, source)
        try:
            with timed():
                parsed = parse_log(data)
                for bank in parsed.banks:
                    replay(parsed, bank)
                chain = read_chain(parsed, parsed.banks[0]) if parsed.banks else None
                if chain is not None:
                    name_events(parsed, chain)
        except LOG_REFUSALS as error:
            seen[error.id] += 1
        else:
            seen["read"] += 1
    return seen


def fuzz_quotes(count: int, seed: int) -> Counter[str]:
    """Bytes of a quote or of its signature changed: nothing but the real pair verifies."""
    source, evidence, seen = random.Random(seed), real(), Counter[str]()
    key = read_attestation_key(evidence.attestation_key)
    for number in range(count):
        attest, signature = evidence.attest, evidence.signature
        if number % 2:
            attest = mutated(attest, source)
        else:
            signature = mutated(signature, source)
        try:
            parse_quote(attest)
        except (NotAQuote, QuoteMalformed) as error:
            seen[error.id] += 1
        try:
            check_signature(key, attest, signature)
        except (SignatureMalformed, SignatureInvalid) as error:
            seen[error.id] += 1
        else:
            raise AssertionError((attest.hex(), signature.hex()))
    return seen


def fuzz_keys(count: int, seed: int) -> Counter[str]:
    """Bytes of a public area changed: refused, or another key than the real one."""
    source, seen = random.Random(seed), Counter[str]()
    areas = [real(scheme).attestation_key for scheme in ("ecdsa", "rsassa")]
    for number in range(count):
        try:
            read_attestation_key(mutated(areas[number % 2], source))
        except AttestationKeyUnfit as error:
            seen[error.id] += 1
        else:
            seen["read"] += 1
    return seen


def fuzz_verdicts(count: int, seed: int) -> Counter[str]:
    """Real evidence with any part changed: what passes was measured just so by the real guest."""
    source, evidence, seen = random.Random(seed), real(), Counter[str]()
    entries, true = draft(), facts(judge(evidence))
    for number in range(count):
        match number % 4:
            case 0:
                hostile = replace(evidence, log=mutated_events(entries, source))
            case 1:
                hostile = replace(evidence, log=mutated(LOG, source))
            case 2:
                hostile = replace(evidence, attest=mutated(evidence.attest, source))
            case _:
                hostile = replace(evidence, signature=mutated(evidence.signature, source))
        with timed():
            verdict = judge(hostile)
        check_consistent(verdict)
        if verdict.attested:
            assert (hostile.attest, hostile.signature) == (evidence.attest, evidence.signature)
            replayed = values(hostile.log)
            assert {pcr: replayed[pcr] for pcr in BOOT_PCRS} == values(LOG)
        if verdict.verdict == "pass":
            assert facts(verdict) == true
        seen.update(each.id for each in verdict.findings if each.severity is Severity.FAILURE)
    return seen


def fuzz_guests(count: int, seed: int) -> Counter[str]:
    """Logs that lie, quoted honestly: a guest that really measured them. Secure Boot is never made up."""
    source, tpm, seen = random.Random(seed), SoftTpm(), Counter[str]()
    entries = compact()
    policy = learn_policy(tpm.evidence(LOG), "first")
    for number in range(count):
        log = mutated_events(entries, source) if number % 2 else mutated(LOG, source)
        try:
            pcrs = values(log)
        except LOG_REFUSALS:
            continue
        with timed():
            verdict = judge(tpm.of_pcrs(log, pcrs), policy if number % 3 else None)
        check_consistent(verdict)
        if verdict.verdict == "pass":
            assert any(each.id == "secure-boot-on" for each in verdict.findings)
            signers = [each.text for each in verdict.findings if each.id == "signer"]
            assert any("(db; PCR 7" in text for text in signers)
            assert any(each.pcr == 4 for each in verdict.chain)
        seen.update(each.id for each in verdict.findings if each.severity is Severity.FAILURE)
    return seen


def facts(verdict: Verdict) -> object:
    """What must not be made to differ without being measured."""
    programs = [each.digest for each in verdict.chain if each.pcr == 4]
    signers = {each.text for each in verdict.findings if each.id == "signer"}
    files = [each.digest for each in verdict.chain if each.role is LinkRole.SECURE_BOOT]
    return verdict.pcrs, programs, {text.split(";")[0] for text in signers}, files


def check_consistent(verdict: Verdict) -> None:
    failed = any(each.severity is Severity.FAILURE for each in verdict.findings)
    assert failed == (verdict.verdict == "fail")
    assert verdict.attested or failed
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_hostile_logs_are_read_or_refused_by_name() -> None:
    seen = fuzz_logs(55_000, 1)
    assert all(seen[each] for each in ("read", "log-malformed", "log-truncated", "log-padded")), seen


def test_no_hostile_quote_or_signature_verifies() -> None:
    seen = fuzz_quotes(25_000, 2)
    wanted = ("quote-malformed", "quote-not-of-tpm", "quote-signature-invalid", "quote-signature-malformed")
    assert all(seen[each] for each in wanted), seen


def test_hostile_keys_are_refused_by_name() -> None:
    assert fuzz_keys(15_000, 3)["attestation-key-unfit"]


def test_no_hostile_evidence_passes() -> None:
    seen = fuzz_verdicts(4_000, 4)
    assert seen["log-does-not-replay"] and seen["quote-signature-invalid"] and seen["event-unexplained"]


def test_no_lying_guest_makes_secure_boot_up() -> None:
    seen = fuzz_guests(4_000, 5)
    assert seen["boot-chain-changed"] and seen["event-unexplained"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many() -> None:
    fuzz_logs(550_000, 11)
    fuzz_quotes(250_000, 12)
    fuzz_keys(150_000, 13)
    fuzz_verdicts(40_000, 14)
    fuzz_guests(40_000, 15)


def test_the_largest_logs_are_judged_in_time() -> None:
    tpm, programs = SoftTpm(), draft()
    digest = [hashlib.sha256(str(each).encode()).digest() for each in range(4000)]
    programs += [Entry(4, 0x80000003, each, b"x" * 100) for each in digest[:3900]]
    policy = learn_policy(tpm.evidence(LOG), "first")
    revoked = bytes.fromhex("2616c4c14c509240aca941f936934328") + (28 + 48 * 15000).to_bytes(4, "little")
    revoked += bytes(4) + (48).to_bytes(4, "little") + bytes(16 + 32) * 15000
    same = [*draft(), *(Entry(8, 0xD, digest[each % 2], b"x") for each in range(3900))]
    signers = draft()
    signer = signers[21]
    for number in range(700):
        data = variable(22, bytes(16) + signer.data[-1556:-4] + number.to_bytes(4, "little"))
        signers.append(Entry(7, 0x800000E0, hashlib.sha256(data).digest(), data))
    logs = [
        written(programs),
        written(same),
        written(signers[:600]),
        changed(DBX, data=variable(DBX, revoked)),
    ]
    for log in logs:
        evidence = tpm.evidence(log)
        with timed():
            judge(evidence, policy)
        with timed():
            judge(evidence, policy.model_copy(update={"compare": (4, 7, 8)}))


def test_certificates_that_are_none_are_no_harm() -> None:
    source, tpm, entries = random.Random(6), SoftTpm(), draft()
    for _ in range(500):
        changed_ = list(entries)
        data = variable(22, mutated(entries[21].data[-1572:], source))
        changed_[21] = Entry(7, 0x800000E0, hashlib.sha256(data).digest(), data)
        verdict = judge(tpm.evidence(written(changed_)))
        assert verdict.verdict == "fail"
        check_consistent(verdict)
