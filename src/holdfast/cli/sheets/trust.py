"""Trust in words: the chain with who signed each link, PCRs, findings, and what a policy changes."""

import re
from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import duration, moment

_MARKS = {"failure": "FAIL", "warning": "warn", "info": "ok"}


def trust_sheet(view: dict[str, Any]) -> str:
    """A `TrustView` in wire form."""
    sheet = Sheet()
    sheet.line("VM", view["vm"])
    enrolment = view["enrolment"]
    sheet.line("TPM identity", f"enrolled {moment(enrolment['time'])}" if enrolment else "not enrolled yet")
    if enrolment:
        sheet.line("Attestation key", enrolment["attestation_key"])
    sheet.line("Policy", view["policy"]["name"])
    interval = view["interval_seconds"]
    sheet.line("Attested", f"every {duration(interval)}" if interval else "when asked")
    verdict = view["verdict"]
    if verdict is None:
        sheet.line("Verdict", "none yet")
    else:
        _verdict(sheet, verdict)
    return sheet.text()


def verdict_sheet(verdict: dict[str, Any]) -> str:
    """A `VmVerdict` in wire form."""
    sheet = Sheet()
    sheet.line("VM", verdict["vm"])
    sheet.line("Policy", verdict["policy"])
    _verdict(sheet, verdict)
    return sheet.text()


def policy_sheet(answer: dict[str, Any]) -> str:
    """A `PolicyAnswer` in wire form."""
    sheet = Sheet()
    sheet.line("Policy", answer["policy"]["name"])
    sheet.line("Stored", "yes" if answer["stored"] else "no: a dry run")
    change = answer["change"]
    if change is None:
        sheet.line("Effect", "not known: the VM does not run")
        return sheet.text()
    sheet.line("Effect", change["text"])
    sheet.list("Rules that differ", change["changes"])
    sheet.rows("Findings that appear", ("", "id", "text"), _findings(change["appearing"]))
    sheet.rows("Findings that vanish", ("", "id", "text"), _findings(change["vanishing"]))
    return sheet.text()


def failures(findings: list[dict[str, Any]]) -> str:
    """The ids of those that make a verdict fail."""
    return " ".join(dict.fromkeys(each["id"] for each in findings if each["severity"] == "failure"))


def _verdict(sheet: Sheet, verdict: dict[str, Any]) -> None:
    sheet.line("Verdict", verdict["verdict"].upper())
    sheet.line("Judged", moment(verdict["time"]))
    sheet.line(
        "Proven", "by a quote of its TPM" if verdict["attested"] else "no: these are the guest's words"
    )
    sheet.rows(
        "Boot chain",
        ("what", "in words", "signed by"),
        (
            (
                link["role"],
                link["text"].partition(", accepted by ")[0],
                "; ".join(_common_name(signer["subject"]) for signer in link["signers"]),
            )
            for link in verdict["chain"]
        ),
    )
    sheet.rows("Findings", ("", "id", "text"), _findings(verdict["findings"]))
    pcrs = sorted(verdict["pcrs"].items(), key=lambda pcr: int(pcr[0]))
    sheet.rows(f"PCRs ({verdict['bank']})", ("pcr", "value"), pcrs)


def _common_name(subject: str) -> str:
    """Of RFC 4514 text, whose last name comes first; all of it where that is another."""
    found = re.match(r"CN=((?:[^,\\]|\\.)+)", subject)
    return found[1] if found else subject


def _findings(findings: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(_MARKS.get(each["severity"], each["severity"]), each["id"], each["text"]) for each in findings]
