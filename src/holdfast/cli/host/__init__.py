"""`holdfast host`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.host", "check show attest", "This host.")
