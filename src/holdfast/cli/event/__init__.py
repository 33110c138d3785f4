"""`holdfast event`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.event", "list", "What happened.")
