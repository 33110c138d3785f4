"""`holdfast trust`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.trust",
    "enrol hosts forget export_state import_state recovery_key recover rotate_host_key",
    "What VMs and hosts are trusted by: attestation, firmware state, and the keys to it.",
)
