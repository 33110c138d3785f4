"""`holdfast trust`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.trust", "enrol hosts forget", "Which hosts are trusted, and by what.")
