"""`holdfast trust policy`: what a VM's boot must show to pass."""

from holdfast.cli.lazy import group

app = group("holdfast.cli.trust.policy", "show learn set", "What a VM's boot must show to pass.")
