"""A host proves to a verifier, by its TPM, how it has booted; only then VMs' keys are released to it."""
