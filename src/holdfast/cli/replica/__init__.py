"""`holdfast replica`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.replica",
    "accept accept_from peer enable extend set pause resume disable status explain history plan limit list "
    "points test tests settle failover commit reclaim turns export_seed import_seed remove",
    "VMs replicated to other hosts, and replicas that this host holds.",
)
