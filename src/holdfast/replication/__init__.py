"""Replicas: a VM's disks and firmware state, kept current on another host."""
