"""Verdicts: a real boot passes, and each way of lying or of having changed fails by its own finding."""

import hashlib
import struct
from dataclasses import replace

import boots
import pytest
from boots import (
    DB,
    DBX,
    DEBIAN,
    GRUB,
    INITRD,
    KERNEL,
    LOG,
    MENU,
    MICROSOFT,
    MOK_TRUSTED,
    NONCE,
    PK,
    SBAT,
    SECURE_BOOT,
    SEPARATOR_7,
    SHIM,
    TIMEOUT,
    Entry,
    SoftTpm,
    changed,
    draft,
    header,
    measured,
    real,
    values,
    variable,
    with_pcrs,
    written,
)
from pydantic import ValidationError

from holdfast.spec.trust import (
    BOOT_PCRS,
    RequiredMeasurement,
    Severity,
    Signer,
    SignerRule,
    TrustPolicy,
    Verdict,
)
from holdfast.trust import boot_chain
from holdfast.trust.event_log import Event
from holdfast.trust.secure_boot_record import Authority, SecureBootRecord
from holdfast.trust.verdict import Evidence, EvidenceUnproven, explain_change, judge, learn_policy

OTHER = hashlib.sha256(b"another loader that somebody signed").digest()
TPM = SoftTpm()


def failures(verdict: Verdict) -> set[str]:
    found = {each.id for each in verdict.findings if each.severity is Severity.FAILURE}
    assert (verdict.verdict == "fail") == bool(found)
    return found


def judged(log: bytes, policy: TrustPolicy | None = None) -> Verdict:
    """An honest quote of a guest that measured this log."""
    verdict = judge(TPM.evidence(log), policy)
    assert verdict.attested
    return verdict


def texts(verdict: Verdict, id: str) -> str:
    return "\n".join(each.text for each in verdict.findings if each.id == id)


@pytest.fixture(scope="module")
def learned() -> TrustPolicy:
    return learn_policy(real(), "first")


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa"])
def test_a_fresh_debian_guest_passes_without_learning(scheme: str) -> None:
    verdict = judge(real(scheme))
    assert verdict.verdict == "pass" and verdict.attested and verdict.policy == "default"
    assert {each.id for each in verdict.findings} == {
        "quote-valid",
        "log-replays",
        "secure-boot-on",
        "signer",
    }
    assert verdict.pcrs == {pcr: value.hex() for pcr, value in values(LOG).items()}


def test_the_chain_is_told_in_words() -> None:
    chain = judge(real(), known={"sha256:" + draft()[GRUB - 1].digest.hex(): "GRUB 2.06-13+deb12u2"}).chain
    roles = [each.role.value for each in chain]
    assert roles == (
        ["firmware"] * 2
        + ["secure-boot", "shim", "revocations", "grub"]
        + ["file"] * 3
        + ["kernel", "command-line", "file"]
    )
    by_role = {each.role.value: each for each in chain}
    assert by_role["shim"].signers[0].subject.startswith("CN=Microsoft Corporation UEFI CA 2011")
    assert by_role["grub"].signers[0].subject == "CN=Debian Secure Boot CA"
    assert by_role["grub"].known == "GRUB 2.06-13+deb12u2" and "GRUB 2.06-13" in by_role["grub"].text
    assert by_role["kernel"].signers == by_role["grub"].signers
    assert "Secure Boot is on" in by_role["secure-boot"].text
    assert "root=UUID=" in by_role["command-line"].text
    assert "shim 4" in by_role["revocations"].text


def test_pcrs_that_the_guest_tells_are_checked() -> None:
    told = values(LOG)
    assert judge(with_pcrs(real(), told)).verdict == "pass"
    assert failures(judge(with_pcrs(real(), {**told, 4: bytes(32)}))) == {"pcrs-not-quoted"}
    assert failures(judge(with_pcrs(real(), {0: bytes(32)}))) == {"pcrs-not-quoted"}
    assert failures(judge(with_pcrs(real(), {**told, 4: b"short"}))) == {"pcrs-not-quoted"}


def test_values_that_only_together_give_the_digest_are_refused() -> None:
    pcrs = {**values(LOG), 10: OTHER, 11: NONCE}
    shifted = {**pcrs, 10: OTHER + NONCE[:1], 11: NONCE[1:]}
    assert judge(with_pcrs(TPM.of_pcrs(LOG, pcrs), pcrs)).verdict == "pass"
    assert failures(judge(with_pcrs(TPM.of_pcrs(LOG, pcrs), shifted))) == {"pcrs-not-quoted"}


def test_a_pcr_that_no_log_explains_may_be_quoted_too() -> None:
    pcrs = {**values(LOG), 10: OTHER}
    evidence = with_pcrs(TPM.of_pcrs(LOG, pcrs), pcrs)
    verdict = judge(evidence)
    assert verdict.verdict == "pass" and verdict.pcrs[10] == OTHER.hex()
    assert failures(judge(replace(evidence, pcrs={}))) == {"pcrs-missing"}
    policy = learn_policy(evidence, "with IMA", compare=(4, 10))
    assert judge(evidence, policy).verdict == "pass"
    other = {**pcrs, 10: NONCE}
    assert failures(judge(with_pcrs(TPM.of_pcrs(LOG, other), other), policy)) == {"boot-chain-changed"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nonce": bytes(32)}, {"nonce-mismatch"}),
        ({"attestation_key": SoftTpm().public_area}, {"quote-signature-invalid"}),
        ({"attestation_key": b""}, {"attestation-key-unfit"}),
        ({"signature": b""}, {"quote-signature-malformed"}),
        ({"log": b""}, {"log-missing"}),
        ({"log": LOG[:-5]}, {"log-truncated"}),
        ({"log": LOG + bytes(64)}, {"log-padded"}),
        ({"log": b"\xff" * 5000}, {"log-malformed"}),
        ({"log": LOG + bytes(2**20)}, {"log-too-large"}),
        ({"log": changed(GRUB, OTHER)}, {"log-does-not-replay"}),
        ({"attest": b""}, {"quote-signature-invalid", "quote-malformed"}),
    ],
)
def test_each_lie_is_named(change: dict[str, bytes], expected: set[str]) -> None:
    verdict = judge(replace(real(), **change))
    assert failures(verdict) == expected and not verdict.attested


def test_nothing_at_all_is_judged_too() -> None:
    found = failures(judge(Evidence(b"", b"", b"", b"", b"")))
    assert found == {"attestation-key-unfit", "quote-malformed", "log-missing"}


def test_the_quote_of_another_vm_is_refused() -> None:
    other = SoftTpm().evidence(LOG)
    mixed = replace(real(), attest=other.attest, signature=other.signature)
    assert failures(judge(mixed)) == {"quote-signature-invalid"}


def test_a_swapped_log_is_named_with_its_pcrs() -> None:
    honest, swapped = changed(GRUB, OTHER), LOG
    evidence = replace(TPM.evidence(honest), log=swapped)
    assert failures(judge(evidence)) == {"log-does-not-replay"}
    told = judge(with_pcrs(evidence, values(honest)))
    assert failures(told) == {"log-does-not-replay"} and "PCRs 4 " in texts(told, "log-does-not-replay")


def test_a_quote_must_cover_the_boot() -> None:
    few = {pcr: value for pcr, value in values(LOG).items() if pcr != 7}
    verdict = judge(TPM.of_pcrs(LOG, few))
    assert failures(verdict) == {"quote-incomplete"} and not verdict.attested
    assert "PCRs 7 " in texts(verdict, "quote-incomplete")


def test_a_quote_of_a_weak_bank_proves_nothing() -> None:
    attest = TPM.attest(values(LOG), bank=4)
    evidence = Evidence(TPM.public_area, NONCE, attest, TPM.sign(attest), LOG)
    assert "quote-of-other-bank" in failures(judge(evidence))


def test_a_changed_grub_is_named_by_its_event(learned: TrustPolicy) -> None:
    verdict = judged(changed(GRUB, OTHER), learned)
    assert failures(verdict) == {"boot-chain-changed"}
    before = draft()[GRUB - 1].digest.hex()
    assert texts(verdict, "boot-chain-changed") == (
        f"GRUB (PCR 4, event {GRUB}) was sha256:{before}, is now sha256:{OTHER.hex()}"
    )


def test_a_changed_kernel_measured_twice_is_told_once(learned: TrustPolicy) -> None:
    entries = draft()
    for number in (KERNEL, KERNEL + 1):
        entries[number - 1].digest = OTHER
    said = texts(judged(written(entries), learned), "boot-chain-changed")
    assert said.startswith(f"kernel (PCR 4, event {KERNEL}) was") and "\n" not in said


def test_an_added_and_a_removed_event_are_named(learned: TrustPolicy) -> None:
    entries = draft()
    command = b"grub_cmd: set debug=all"
    entries.insert(TIMEOUT - 1, Entry(8, 0xD, hashlib.sha256(command[10:]).digest(), command + b"\0"))
    del entries[INITRD]  # moved by one: the initrd's event
    said = texts(judged(written(entries), learned), "boot-chain-changed")
    assert f"GRUB command 'set debug=all' (PCR 8, event {TIMEOUT}) is new" in said
    assert "file /initrd.img (PCR 9) was" in said and said.count("\n") == 1


def test_a_first_difference_of_firmware_is_told_and_does_not_fail(learned: TrustPolicy) -> None:
    verdict = judged(changed(2, OTHER), learned)
    assert verdict.verdict == "pass" and "firmware volume (PCR 0" in texts(verdict, "measurement-differs")
    strict = learned.model_copy(update={"compare": BOOT_PCRS})
    assert failures(judged(changed(2, OTHER), strict)) == {"boot-chain-changed"}


def test_the_same_boot_passes_what_was_learned(learned: TrustPolicy) -> None:
    verdict = judge(real(), learned)
    assert verdict.verdict == "pass" and texts(verdict, "baseline-matches")
    assert TrustPolicy.model_validate_json(learned.model_dump_json()) == learned


def test_nothing_is_learned_from_what_is_not_proven() -> None:
    with pytest.raises(EvidenceUnproven) as caught:
        learn_policy(replace(real(), nonce=bytes(32)), "bad")
    assert caught.value.value == ["nonce-mismatch"]


def test_secure_boot_must_be_on() -> None:
    log = changed(SECURE_BOOT, data=variable(SECURE_BOOT, b"\0"))
    assert failures(judged(log)) == {"secure-boot-off"}
    assert judged(log, TrustPolicy(secure_boot="optional")).verdict == "pass"


def test_secure_boot_cannot_be_claimed_after_the_fact() -> None:
    """From a running system one can append, and call events as one likes; never take back."""
    off = measured(7, 0x80000001, variable(SECURE_BOOT, b"\0"))
    on = draft()[SECURE_BOOT - 1]
    entries = draft()
    entries[SECURE_BOOT - 1] = off
    assert "secure-boot-off" in failures(judged(written([*entries, on])))
    entries[SECURE_BOOT - 1] = replace(off, kind=0xD, data=b"something else")
    found = failures(judged(written([*entries, on])))
    assert found >= {"event-unexplained", "secure-boot-not-told"}
    entries[SECURE_BOOT - 1] = replace(off, kind=0x80000007)
    assert "secure-boot-off" in failures(judged(written([*entries, on])))
    entries = draft()
    entries[SEPARATOR_7 - 1].kind = 0x5
    assert judged(written(entries)).verdict == "pass"


def test_secure_boot_is_what_was_measured_first_and_never_turns_on() -> None:
    off = measured(7, 0x80000001, variable(SECURE_BOOT, b"\0"))
    entries = draft()
    entries.insert(SECURE_BOOT - 1, off)
    assert failures(judged(written(entries))) == {"secure-boot-off"}
    entries = draft()
    entries.insert(SECURE_BOOT - 1, entries.pop(PK - 1))
    assert failures(judged(written(entries))) == {"event-unexplained"}
    entries = draft()
    entries[SECURE_BOOT - 1].digest = off.digest
    assert {"event-unexplained", "secure-boot-not-told"} <= failures(judged(written(entries)))


def test_a_bank_that_was_not_quoted_neither_proves_nor_disproves() -> None:
    """SHA-256 is quoted; what the log says of SHA-384 may be anything."""
    log = header({11: 32, 12: 48})
    for each in draft():
        log += struct.pack("<IIIH", each.pcr, each.kind, 2, 11) + each.digest
        log += struct.pack("<H", 12) + bytes(48) + struct.pack("<I", len(each.data)) + each.data
    verdict = judge(TPM.evidence(log))
    assert verdict.verdict == "pass" and verdict.bank == "sha256"


def test_a_signer_cannot_be_hidden() -> None:
    """An event that named who accepted a loader, under another type: it still counts."""
    policy = TrustPolicy(signers=(SignerRule(subject="CN=Debian Secure Boot CA"),))
    assert failures(judged(LOG, policy)) == {"signer-not-accepted"}
    for kind in (0x5, 0x6, 0xD, 0x80000001, 0x80000007):
        entries = draft()
        entries[MICROSOFT - 1].kind = kind
        assert failures(judged(written(entries), policy)) == {"signer-not-accepted"}
    entries[MICROSOFT - 1].data = entries[DEBIAN - 1].data
    assert "event-unexplained" in failures(judged(written(entries), policy))
    entries[MICROSOFT - 1].data = b"nothing to see"
    assert "event-unexplained" in failures(judged(written(entries), policy))


def test_a_program_cannot_be_hidden(learned: TrustPolicy) -> None:
    for kind in (0x5, 0xD, 0x4, 0x80000007):
        entries = draft()
        entries.append(Entry(4, kind, OTHER, b"nothing to see"))
        assert "event-unexplained" in failures(judged(written(entries)))


def test_an_attempt_to_boot_is_no_program() -> None:
    entries = draft()
    entries[13].kind, entries[13].data = 0x80000003, bytes(32)
    assert judged(written(entries)).chain == judge(real()).chain


def test_false_data_are_named() -> None:
    entries = draft()
    entries[MICROSOFT - 1].data = variable(MICROSOFT, b"x" * 1572)
    assert "event-unexplained" in failures(judged(written(entries)))
    entries = draft()
    entries[boots.COMMAND_LINE - 1].data = b"kernel_cmdline: /vmlinuz quiet\0"
    verdict = judged(written(entries))
    assert texts(verdict, "log-text-unproven") and verdict.verdict == "pass"
    assert all(each.role.value != "command-line" for each in verdict.chain)
    entries = draft()
    entries[0].data = b"9\0"
    assert failures(judged(written(entries))) == {"log-data-false"}


def test_events_of_pcrs_that_were_not_quoted_count_for_nothing() -> None:
    more = written([*draft(), Entry(23, 0xD, OTHER, b"nothing was quoted of this")])
    policy = TrustPolicy(forbidden=(f"sha256:{OTHER.hex()}",))
    assert judge(replace(TPM.evidence(LOG), log=more), policy).verdict == "pass"
    assert failures(judge(TPM.evidence(more), policy)) == {"measurement-forbidden"}


def test_signers_are_accepted_by_subject_or_fingerprint() -> None:
    chain = {each.role.value: each for each in judge(real()).chain}
    microsoft, debian = chain["shim"].signers[0], chain["grub"].signers[0]
    both = (SignerRule(subject=microsoft.subject), SignerRule(fingerprint=debian.fingerprint))
    assert judge(real(), TrustPolicy(signers=both)).verdict == "pass"
    crossed = (
        SignerRule(subject=microsoft.subject, fingerprint=debian.fingerprint),
        SignerRule(fingerprint=debian.fingerprint),
    )
    assert failures(judge(real(), TrustPolicy(signers=crossed))) == {"signer-not-accepted"}
    assert failures(judge(real(), TrustPolicy(signers=()))) == {"signer-not-accepted"}
    with pytest.raises(ValidationError):
        SignerRule()


def test_a_signer_must_be_in_db_and_not_in_dbx() -> None:
    empty = changed(DB, data=variable(DB, b""))
    assert failures(judged(empty)) == {"signer-not-in-db"}
    entry = draft()[MICROSOFT - 1].data[-1572:]
    sizes = (28 + len(entry)).to_bytes(4, "little") + bytes(4) + len(entry).to_bytes(4, "little")
    x509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
    assert failures(judged(changed(DBX, data=variable(DBX, x509 + sizes + entry)))) == {"signer-revoked"}


def test_a_revoked_program_is_named() -> None:
    sha256 = bytes.fromhex("2616c4c14c509240aca941f936934328")
    sizes = (28 + 48).to_bytes(4, "little") + bytes(4) + (48).to_bytes(4, "little")
    dbx = sha256 + sizes + bytes(16) + draft()[SHIM - 1].digest
    assert failures(judged(changed(DBX, data=variable(DBX, dbx)))) == {"loader-revoked"}


def test_a_broken_database_is_named() -> None:
    for number in (PK, DBX):
        found = failures(judged(changed(number, data=variable(number, b"x" * 40))))
        assert found == {"event-unexplained"}


def test_a_chain_without_signers_or_programs_fails() -> None:
    gone = {MICROSOFT, DEBIAN}
    assert failures(judged(without(gone))) == {"loader-signer-unknown"}
    assert failures(judged(without({DEBIAN}))) == {"loader-signer-unknown"}
    twice = draft()
    twice[MICROSOFT - 1] = twice[DEBIAN - 1]
    assert failures(judged(written(twice))) == {"loader-signer-unknown"}
    programs = {SHIM, GRUB, KERNEL, KERNEL + 1}
    assert failures(judged(without(programs))) == {"chain-empty"}


def test_a_shim_that_verifies_nothing_fails() -> None:
    entries = draft()
    entries.insert(MOK_TRUSTED - 1, Entry(14, 0xD, hashlib.sha256(b"\1").digest(), b"MokSBState\0"))
    assert failures(judged(written(entries))) == {"shim-validation-off"}
    entries[MOK_TRUSTED - 1].data = b"MokListTrusted\0"
    assert failures(judged(written(entries))) == {"shim-validation-off"}


def test_switches_of_shim_in_pcr_7_are_no_signers() -> None:
    switches = {name: switch(name, b"\1") for name in ("MokListTrusted", "MokSBState")}
    assert judged(written([*draft(), switches["MokListTrusted"]])).verdict == "pass"
    assert failures(judged(written([*draft(), switches["MokSBState"]]))) == {"shim-validation-off"}


def switch(name: str, content: bytes) -> Entry:
    vendor = draft()[SBAT - 1].data[:16]
    head = struct.pack("<16sQQ", vendor, len(name), len(content)) + name.encode("utf-16-le")
    return measured(7, 0x800000E0, head + content)


def test_the_measurements_of_old_shims_are_understood() -> None:
    """Before 15.3: six bytes more in the log than there are, all but one measured; no owner before it."""
    entries = draft()
    data = variable(MICROSOFT, entries[MICROSOFT - 1].data[-1556:])
    for entry, old in ((entries[DEBIAN - 1], data), (entries[MICROSOFT - 1], entries[MICROSOFT - 1].data)):
        entry.data, entry.digest = old + bytes(6), hashlib.sha256(old + bytes(5)).digest()
    verdict = judged(written(entries))
    assert verdict.verdict == "pass" and texts(verdict, "signer").count("UEFI CA 2011") == 1
    entries[DEBIAN - 1].data = data + bytes(5)
    assert "event-unexplained" in failures(judged(written(entries)))


def test_a_grub_that_tells_no_commands_is_known_by_its_name() -> None:
    entries = [each for each in draft() if each.pcr != 8]
    roles = [each.role.value for each in judged(written(entries)).chain if each.pcr == 4]
    assert roles == ["shim", "grub", "kernel"]


def test_the_firmwares_version_is_told() -> None:
    entries = draft()
    entries[0] = measured(0, 8, "Maker 1.2".encode("utf-16-le") + bytes(2))
    assert "version 'Maker 1.2'" in judged(written(entries)).chain[0].text
    entries[0].digest = OTHER
    assert "no version" in judged(written(entries)).chain[0].text
    alone = [measured(0, 8, "Maker 1.2".encode("utf-16-le")), *entries[3:]]
    assert judged(written(alone)).chain[0].text == "firmware, version 'Maker 1.2'"


def test_debug_firmware_fails() -> None:
    entries = draft()
    entries.insert(SEPARATOR_7 - 1, measured(7, 0x80000007, b"UEFI Debug Mode"))
    assert failures(judged(written(entries))) == {"firmware-debug-mode"}


def test_sbat_can_be_pinned() -> None:
    assert (
        judge(real(), TrustPolicy(minimum_sbat={"shim": 4, "grub": 5, "sbat": 2025021800})).verdict == "pass"
    )
    assert failures(judge(real(), TrustPolicy(minimum_sbat={"grub": 6}))) == {"sbat-level-low"}
    assert failures(judge(real(), TrustPolicy(minimum_sbat={"other": 1}))) == {"sbat-level-low"}
    policy = TrustPolicy(minimum_sbat={"shim": 4})
    assert failures(judged(without({SBAT}), policy)) == {"sbat-level-missing"}
    entries = draft()
    entries.append(measured(7, 0x800000E0, variable(SBAT, b"sbat,1,2021030218\nshim,1\n")))
    assert failures(judged(written(entries), policy)) == {"sbat-level-low"}


def test_exact_measurements_can_be_demanded() -> None:
    entries = draft()
    digests = [f"sha256:{each.digest.hex()}" for each in entries]
    initrd = RequiredMeasurement(pcr=9, digest=digests[INITRD - 1], what="the initrd")
    good = TrustPolicy(
        required=(initrd,),
        images=tuple(digests[number - 1] for number in (SHIM, GRUB, KERNEL)),
        pcr_values={9: (values(LOG)[9].hex(),), 4: ("00" * 32, values(LOG)[4].hex())},
    )
    assert judge(real(), good).verdict == "pass"
    found = failures(judged(changed(INITRD, OTHER), good))
    assert found == {"measurement-missing", "pcr-value-not-accepted"}
    assert "loader-not-accepted" in failures(judged(changed(GRUB, OTHER), good))
    entries.append(Entry(9, 3, bytes.fromhex(initrd.digest[7:]), b""))
    entries[INITRD - 1].digest = OTHER
    assert "measurement-missing" in failures(judge(TPM.evidence(written(entries)), good))
    forbidden = TrustPolicy(forbidden=(digests[MENU - 1],))
    assert failures(judge(real(), forbidden)) == {"measurement-forbidden"}


def test_a_policy_may_name_pcrs_beyond_the_boot() -> None:
    policy = TrustPolicy(pcr_values={10: (OTHER.hex(),)})
    assert "quote-incomplete" in failures(judge(real(), policy))
    pcrs = {**values(LOG), 10: OTHER}
    assert judge(with_pcrs(TPM.of_pcrs(LOG, pcrs), pcrs), policy).verdict == "pass"


def test_a_dry_run_tells_what_would_change(learned: TrustPolicy) -> None:
    evidence = TPM.evidence(changed(GRUB, OTHER))
    told = explain_change(TrustPolicy(), learned, evidence)
    assert (told.before.verdict, told.after.verdict) == ("pass", "fail")
    assert [each.id for each in told.appearing] == ["boot-chain-changed"] and not told.vanishing
    assert "from pass to fail" in told.text
    assert any(each.startswith("baseline: none becomes") for each in told.changes)
    same = explain_change(learned, learned, evidence)
    assert not same.changes and not same.appearing and "stay fail" in same.text


def test_a_flood_of_certificates_makes_no_large_chain() -> None:
    """Each program of the chain would carry all of them, twice."""
    signers = [Signer(subject=f"CN={number}", fingerprint="", source="db") for number in range(3000)]
    record = SecureBootRecord()
    record.authorities = [Authority(Event(1, 7, 0, {}, b""), None, each, b"") for each in signers]  # type: ignore[arg-type]
    programs = [Event(number, 4, 0, {}, b"") for number in range(2, 82)]
    told = boot_chain._signers(programs, record)
    assert len(told) == 80 and all(each == tuple(signers[:8]) for each in told)


def test_a_flood_of_findings_is_bounded(learned: TrustPolicy) -> None:
    flood = [Entry(8, 0xD, hashlib.sha256(str(each).encode()).digest(), b"x") for each in range(3000)]
    verdict = judged(written([*draft(), *flood]), learned)
    assert len(verdict.findings) < 40
    assert "2992 more events of PCR 8 differ" in texts(verdict, "boot-chain-changed")
    unproven = [Entry(8, 0xD, each.digest, b"grub_cmd: x") for each in flood]
    verdict = judged(written([*draft(), *unproven]))
    assert len(verdict.findings) < 100 and "more of these" in texts(verdict, "log-text-unproven")


def test_many_changes_of_one_pcr_do_not_hide_another(learned: TrustPolicy) -> None:
    flood = [measured(8, 0xD, b"grub_cmd: " + str(each).encode()) for each in range(100)]
    entries = draft()
    entries[INITRD - 1].digest = OTHER
    said = texts(judged(written([*entries, *flood]), learned), "boot-chain-changed")
    assert "file /initrd.img (PCR 9" in said


def test_a_flood_of_one_kind_hides_no_other() -> None:
    volumes = [Entry(0, 0x80000008, OTHER, bytes(16)) for _ in range(3000)]
    entries = draft()
    chain = judged(written([*entries[:3], *volumes, *entries[3:]])).chain
    assert len(chain) < 60 and {"shim", "grub", "kernel"} <= {each.role.value for each in chain}


def test_control_characters_never_reach_a_terminal(learned: TrustPolicy) -> None:
    entries = draft()
    entries[INITRD - 1].data = b"/initrd\x1b[2J\x07\0"
    entries[INITRD - 1].digest = OTHER
    verdict = judged(written(entries), learned)
    said = verdict.model_dump_json()
    assert "initrd" in said and "\\u001b" not in said and "\x1b" not in said


def without(numbers: set[int]) -> bytes:
    return written([each for number, each in enumerate(draft(), 1) if number not in numbers])
