"""`holdfast replica peer`: hosts that replicate to each other."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.replica.peer", "add list remove", "Hosts that are paired with this one.")
