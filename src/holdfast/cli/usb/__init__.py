"""`holdfast usb`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.usb", "add list remove", "USB devices of the host in VMs, running or not.")
