"""`holdfast vm`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.vm",
    "create import_ list show start stop kill restart pause resume save rename set move_disk clone export"
    " delete console screenshot exec log events wait",
    "Virtual machines.",
)
