"""`holdfast switch`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.switch", "create list show delete", "Switches that VMs are plugged into.")
