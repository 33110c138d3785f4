"""The line of the host check about the host key: what keeps the key that wraps the VMs' keys."""

from holdfast.spec.firmware_state import HostKeyFacts, HostKeyKind
from holdfast.spec.host import CheckLine, CheckStatus

_FILE = "in a file that root alone may read: whoever copies the host's disk opens the TPMs of its VMs"
_TPM = "sealed in the host's TPM to its boot state: a stolen or copied disk does not open it"


def check_host_key(facts: HostKeyFacts) -> CheckLine:
    """What protects the keys of the VMs' TPMs on this host, and how they could be protected better."""

    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="host-key", title="Host key", status=status, text=text, cure=cure)

    if facts.problem:
        return line(CheckStatus.MISSING, facts.problem, facts.cure)
    if facts.kind is HostKeyKind.TPM or (facts.kind is None and facts.tpm):
        return line(CheckStatus.OK, _TPM if facts.kind else f"none yet; it will be {_TPM}")
    text = _FILE if facts.kind else f"none yet; it will be {_FILE}"
    if facts.tpm:
        return line(
            CheckStatus.LIMITED,
            f"{text}. This host has a TPM",
            "Move the key into it, with VMs running on: `holdfast trust rotate-host-key --to tpm`.",
        )
    return line(
        CheckStatus.LIMITED,
        f"{text}. No TPM of this host can be used",
        "Enable the TPM in the firmware setup and restart the daemon, or keep the state folder on an"
        " encrypted disk.",
    )
