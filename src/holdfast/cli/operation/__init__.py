"""`holdfast operation`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.operation", "list show cancel", "Long work under way or ended.")
