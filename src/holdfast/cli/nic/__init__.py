"""`holdfast nic`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.nic", "add list set remove", "Network cards of VMs, running or not.")
