"""`holdfast trust secret`: what is kept for guests that pass."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.trust.secret", "add list delete", "Secrets kept for a guest that passes.")
