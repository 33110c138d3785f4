"""Variable stores, certificates and the vTPM."""
