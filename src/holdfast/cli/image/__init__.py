"""`holdfast image`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.image", "build pull import_ list show delete", "Images that VMs are made from.")
