"""One file per device: pure functions from values to QEMU's arguments."""
