"""`holdfast trust`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.trust",
    "export_state import_state recovery_key recover rotate_host_key enrol hosts forget",
    "What VMs and hosts are trusted by, and the keys to it.",
)
