"""Benchmarks: each prints its figures with their aim, measured beside a peer in the same run."""
