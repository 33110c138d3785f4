"""`holdfast trust`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.trust",
    "show attest history policy schedule reset secret release"
    " export_state import_state recovery_key recover rotate_host_key"
    " enrol hosts forget",
    "What VMs booted with and whether that is as it should be; their firmware state; trusted hosts.",
)
