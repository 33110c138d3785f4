"""`holdfast certs`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.certs",
    "list show plan update rollback enrol",
    "Secure Boot's certificates of VMs.",
)
