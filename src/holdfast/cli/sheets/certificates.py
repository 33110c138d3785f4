"""`certs show`, `certs plan` and what an update did."""

from collections.abc import Iterator
from typing import Any

from holdfast.cli.sheets.sheet import Sheet

_WHEN = {"now": "now", "next-start": "at the next start", "never": "not at all"}
_OUTCOME = {
    "changed": "keys changed",
    "at-next-start": "will be changed at its next start after a shut-down",
    "dropped": "the recorded change was dropped",
    "left-alone": "left alone",
    "failed": "failed",
}


def day(value: str | None) -> str | None:
    """The date of a time in wire form."""
    return value[:10] if value else None


def certificates_sheet(vm: dict[str, Any]) -> str:
    """A VM's certificates in wire form."""
    sheet = Sheet()
    sheet.line("VM", vm["vm"])
    sheet.line("Status", f"{vm['status']}: {vm['reason']}")
    loader = vm["loader"]
    if loader:
        sheet.line("Loader", f"{loader['path']} on {loader['disk']}")
        sheet.line("Signed by", ", ".join(loader["signers"]) or "nobody")
        sheet.line("Today", loader["standing"] + (f" by {loader['by']}" if loader["by"] else ""))
        sheet.line("After an update", loader["after_update"])
        sheet.line_if("Authenticode", f"sha256:{loader['sha256']}" if loader["sha256"] else None)
        sheet.line_if("Not all was read", vm["loader_note"] or None)
    else:
        sheet.line("Loader", vm["loader_note"])
    sheet.line("Revoked", f"{vm['revoked_images']} images, {vm['revoked_certificates']} certificates")
    sheet.line("Waiting", "a change, for the next start" if vm["pending"] else "nothing")
    sheet.line("To roll back to", "the keys from before the last change" if vm["previous"] else "nothing")
    rows = (
        (each["variable"], each["subject"], day(each["expires"]), each["fingerprint"][:16])
        for each in vm["certificates"]
    )
    sheet.rows("Certificates", ("in", "subject", "expires", "sha256"), rows)
    sheet.list("Missing", vm["missing"])
    sheet.list("Expired without a successor", vm["expired"])
    return sheet.text()


def plan_sheet(plan: dict[str, Any]) -> str:
    """One VM's part of a plan, in wire form."""
    sheet = Sheet()
    sheet.line("VM", plan["vm"])
    sheet.line("Status", plan["status"])
    sheet.line("Changed", _WHEN[plan["when"]] + (f": {plan['reason']}" if plan["reason"] else ""))
    sheet.line_if("Loader then", plan["loader_after"])
    rows = ((each["action"], each["variable"], each["what"], day(each["expires"])) for each in plan["steps"])
    sheet.rows("Steps", ("do", "in", "what", "expires"), rows)
    sheet.list("Notices", plan["notices"])
    return sheet.text()


def outcomes(operation: dict[str, Any]) -> Iterator[str]:
    """A line for each VM of an operation that has ended, and what is to be heeded."""
    result = operation["result"] or {}
    for each in result.get("vms", []):
        outcome = _OUTCOME.get(each["outcome"], each["outcome"])
        yield f"{each['vm']}: {outcome}" + (f": {each['reason']}" if each["reason"] else "")
    yield from result.get("notices", [])
