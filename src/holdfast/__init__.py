"""Holdfast: a virtualization platform for Linux hosts on QEMU/KVM."""
