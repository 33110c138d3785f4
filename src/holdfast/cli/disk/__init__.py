"""`holdfast disk`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.disk", "add list show grow move limit remove", "Disks of a VM that exists.")
