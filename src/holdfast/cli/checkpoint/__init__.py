"""`holdfast checkpoint`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.checkpoint",
    "create list show apply delete rename export schedule",
    "States of a VM to return to: disks, firmware state and memory of one instant.",
)
