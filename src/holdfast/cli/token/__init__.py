"""`holdfast token`: a file for each verb."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.token", "create list delete", "Tokens of the API over TLS.")
