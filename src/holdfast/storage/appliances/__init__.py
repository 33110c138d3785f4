"""Machines as other platforms describe them: a file per source, all read into one `Appliance`."""
