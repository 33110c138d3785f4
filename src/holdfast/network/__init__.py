"""Switches, ports, VLANs and addresses."""
