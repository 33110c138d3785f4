"""The host itself: CPUs, NUMA, cgroups, acceleration, devices, processes, files."""
