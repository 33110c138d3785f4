"""TPM 2.0 as its specification speaks it: structures, commands, and the ways to a TPM."""
