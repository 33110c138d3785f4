"""`holdfast replica`: a file for each verb."""

from holdfast.cli.lazy import group

app = group(
    "holdfast.cli.replica",
    "accept peer enable disable status explain history limit list points test tests settle remove",
    "VMs replicated to other hosts, and replicas that this host holds.",
)
