"""`holdfast pool`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.pool", "create list show refresh delete", "Pools that VMs' disks lie in.")
