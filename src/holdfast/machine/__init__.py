"""From a VM's specification to QEMU's arguments (pure, a file per device), and the running machine."""
