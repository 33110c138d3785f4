"""The versions of the records, oldest first by their number."""
