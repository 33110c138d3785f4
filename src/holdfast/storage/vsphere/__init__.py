"""VMs of VMware's vCenter and ESXi, read over their published interfaces."""
