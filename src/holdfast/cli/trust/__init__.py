"""`holdfast trust`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.trust",
    "show attest history policy schedule reset enrol hosts forget",
    "What VMs booted with and whether that is as it should be; which hosts are trusted.",
)
