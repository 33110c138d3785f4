"""What a host's evidence is worth: a pure function from what is enrolled and what is shown to a verdict."""

import base64
import binascii
from datetime import datetime
from typing import Literal

from holdfast.spec.errors import HoldfastError
from holdfast.spec.host_attestation import EnrolledHost, HostEvidence, HostFinding, HostVerdict
from holdfast.spec.trust import Bank
from holdfast.trust.event_log import parse_log, replay
from holdfast.trust.host_attestation.quote_check import QuoteNotGenuine, check_quote
from holdfast.trust.tpm.pcrs import PcrValues
from holdfast.trust.tpm.public import Public

Severity = Literal["info", "warning", "failure"]
NOT_GENUINE = "quote-not-genuine"
# TCG PC Client Platform Firmware Profile, section 3.3.4; 8, 9 and 14 as GRUB and shim use them.
_MEANS = {
    0: "firmware", 1: "firmware settings", 2: "extension ROMs", 3: "settings of extension ROMs",
    4: "boot loader", 5: "partition table", 6: "platform", 7: "Secure Boot and its keys",
    8: "commands of the boot loader", 9: "kernel and initrd", 14: "machine owner keys",
}  # fmt: skip


_LAST_OF_FIRMWARE = 7


def judge(host: EnrolledHost, nonce: bytes, evidence: HostEvidence, at: datetime) -> HostVerdict:
    """Compare a host's evidence, given for `nonce`, with what it was enrolled with."""
    found: list[HostFinding] = []
    if not host.certified:
        text = "nobody vouches for this host's TPM but the admin who enrolled it"
        found.append(_finding("endorsement-not-certified", "warning", text))
    genuine = _genuine(Public.decode(bytes.fromhex(host.attestation)), nonce, evidence)
    if genuine:
        found.append(genuine)
    else:
        found += _compared(host, evidence)
        found += _log_findings(evidence)
    failed = any(each.severity == "failure" for each in found)
    return HostVerdict(verdict="not-trusted" if failed else "trusted", findings=tuple(found), at=at)


def _values_of(evidence: HostEvidence) -> PcrValues:
    return {pcr: bytes.fromhex(value) for pcr, value in evidence.pcrs.items()}


def _genuine(key: Public, nonce: bytes, evidence: HostEvidence) -> HostFinding | None:
    attest, signature = bytes.fromhex(evidence.attest), bytes.fromhex(evidence.signature)
    try:
        check_quote(key, attest, signature, nonce, _values_of(evidence))
    except QuoteNotGenuine as error:
        return _finding(NOT_GENUINE, "failure", error.message)
    return None


def _compared(host: EnrolledHost, evidence: HostEvidence) -> list[HostFinding]:
    found = []
    for pcr, wanted in sorted(host.pcrs.items()):
        what, has = _MEANS.get(pcr, "other measurements"), evidence.pcrs.get(pcr)
        if has is None:
            found.append(_finding("pcr-not-shown", "failure", f"PCR {pcr} ({what}) is not in the quote"))
        elif has != wanted:
            text = f"PCR {pcr} ({what}) is {has}, and was {wanted} when the host was enrolled"
            found.append(_finding("pcr-changed", "failure", text))
    return found


def _log_findings(evidence: HostEvidence) -> list[HostFinding]:
    if not evidence.event_log:
        return [_finding("no-event-log", "info", "no event log was replayed; PCRs are compared as they are")]
    try:
        replayed = replay(parse_log(base64.b64decode(evidence.event_log, validate=True)), Bank.SHA256)
    except (HoldfastError, binascii.Error) as error:
        return [_finding("event-log-malformed", "failure", f"the event log cannot be read: {error}")]
    return [
        _finding("event-log-differs", "failure", f"the event log replays PCR {pcr} to another value")
        for pcr, value in sorted(_values_of(evidence).items())
        # Beyond the firmware's own registers others extend too, and log it elsewhere or not at all.
        if (pcr <= _LAST_OF_FIRMWARE or pcr in replayed) and replayed.get(pcr, bytes(32)) != value
    ]


def _finding(id: str, severity: Severity, text: str) -> HostFinding:
    return HostFinding(id=id, severity=severity, text=text)
